"""What Weights & Biases and MLflow have in common: runs that are begun, gone on with and ended, each part sent once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from mft_ray.config import ArtifactName
from mft_ray.config.params import Params
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import Verdict
from mft_ray.tracking.artifacts import digest, files_of
from mft_ray.tracking.metrics import of_end, of_evaluation, of_verdict
from mft_ray.tracking.sent import Sent, SentRun
from mft_ray.tracking.snapshot import VERDICT, Snapshot, Training
from mft_ray.training.job import StopReason

# An optimizer step, when it was in seconds since the epoch, and values by name.
Numbers = tuple[int, float, dict[str, float]]


class Service(ABC):
    """A service that runs are sent to; all of a search are of one group.

    What was sent is kept in ``RUN/work/tracking``: a resumed search goes on where it was.

    Args:
        folder: run folder.
        label: name of the search.
        target: where it is sent.
        artifacts: files that go with the verdict.
    """

    name: str
    # Whether trainings are sent as they go, and not only when they have ended.
    live = True

    def __init__(self, folder: RunFolder, label: str, target: str, artifacts: Sequence[ArtifactName]) -> None:
        self._folder, self._artifacts = folder, artifacts
        self._path = folder.tracking / f"{type(self).__name__.lower()}.json"
        self.sent = Sent.open(self._path, target)
        self.group = f"{label}-{self.sent.token}"
        self._done: dict[str, Training] = {}

    def sync(self, snapshot: Snapshot, final: bool) -> None:
        """Send what is new.

        Args:
            snapshot: search as it is now.
            final: whether the search has come to its end, or is interrupted: only then the verdict's files are whole.
        """
        for training in snapshot.trainings:
            due = self.live or final or training.end is not None
            if due and self._done.get(training.name) is not training:
                self._send(training)
                self._done[training.name] = training
        names = {training.name for training in snapshot.trainings} | {VERDICT}
        for name, sent in self.sent.runs.items():
            if name not in names and not sent.ended:  # a trial that another has taken the place of
                self.end(sent, name, failed=True)
                self._note(sent, ended=True)
        if snapshot.verdict is not None and (final or not self._artifacts):
            self._send_verdict(snapshot.verdict)

    def _send(self, training: Training) -> None:
        sent = self.sent.runs.get(training.name)
        last = training.history[-1].step if training.history else -1
        if sent is not None and sent.step >= last and sent.ended == (training.end is not None):
            return
        sent = self._begun(training.name, training.params)
        if missing := [each for each in training.history if each.step > sent.step]:
            rows = [(each.step, training.began + each.seconds, of_evaluation(each)) for each in missing]
            self.log(sent, training.name, rows)
            self._note(sent, step=last)
        if training.end is not None:
            failed = training.end.reason == StopReason.FAILED
            facts = {"stopped_reason": str(training.end.reason)}
            self.summarize(sent, training.name, of_end(training.end), facts)
            self.end(sent, training.name, failed)
            self._note(sent, ended=True)

    def _send_verdict(self, verdict: Verdict) -> None:
        files = files_of(self._folder, self._artifacts)
        # A report and a card are written again, with their time, whenever the search is gone on with.
        seen = [self._folder.verdict, *([self._folder.leaderboard] if files else ())]
        now = digest(seen) + ",".join(files)
        if now == self.sent.verdict:
            return
        sent = self._begun(VERDICT, {"method": verdict.method, "trial_id": verdict.trial_id})
        facts = {"sentence": verdict.sentence or "", "trial_id": verdict.trial_id, "metric": verdict.metric}
        self.summarize(sent, VERDICT, of_verdict(verdict), facts)
        self.send_files(sent, VERDICT, files)
        self.end(sent, VERDICT, failed=False)
        self.sent.verdict = now
        self._note(sent, ended=True)

    def _begun(self, name: str, params: Params) -> SentRun:
        known = self.sent.runs.get(name)
        sent = self.begin(name, params, known)
        self.sent.runs[name] = sent
        self._note(sent, ended=False)
        return sent

    def _note(self, sent: SentRun, step: int | None = None, ended: bool | None = None) -> None:
        sent.step = sent.step if step is None else step
        sent.ended = sent.ended if ended is None else ended
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.sent.save(self._path)

    @abstractmethod
    def begin(self, name: str, params: Params, known: SentRun | None) -> SentRun:
        """Have a run open on the service, which may be open already, and return what has been sent of it.

        Args:
            name: name of the run.
            params: its settings.
            known: what has been sent of it; None where it is new.
        """

    @abstractmethod
    def log(self, sent: SentRun, name: str, rows: Sequence[Numbers]) -> None:
        """Send evaluations.

        Args:
            sent: run.
            name: its name.
            rows: evaluations, in order.
        """

    @abstractmethod
    def summarize(self, sent: SentRun, name: str, numbers: dict[str, float], facts: dict[str, str]) -> None:
        """Send what is to be said of a run once.

        Args:
            sent: run.
            name: its name.
            numbers: values by name.
            facts: texts by name.
        """

    @abstractmethod
    def send_files(self, sent: SentRun, name: str, files: dict[str, Path]) -> None:
        """Send files.

        Args:
            sent: run.
            name: its name.
            files: by the path that they get on the service.
        """

    @abstractmethod
    def end(self, sent: SentRun, name: str, failed: bool) -> None:
        """Say that a run has ended.

        Args:
            sent: run.
            name: its name.
            failed: whether it came to nothing.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of runs that have not ended; a resumed search goes on with them."""
