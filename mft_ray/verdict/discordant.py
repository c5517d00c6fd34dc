"""Examples on which FFT and the winner differ, with what both say: what a mean difference is made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from mft_ray.data.store import TOKENIZER, open_split
from mft_ray.errors import RunFailed
from mft_ray.evaluation.benchmark import texts_file
from mft_ray.models.loading import load_tokenizer
from mft_ray.models.names import TRACEBACK
from mft_ray.runs.candidates import Candidate
from mft_ray.runs.context import RunContext
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import Differences, Discordant, Example
from mft_ray.utils.console import log_warning
from mft_ray.workers.group import keep_traceback

SHOWN = 5  # each way


@dataclass(frozen=True)
class Pair:
    """Two models and their scores on the same examples.

    Attributes:
        fft: the FFT model.
        winner: the other.
        scores: scores of FFT and of the winner, one per example.
    """

    fft: Candidate
    winner: Candidate
    scores: tuple[Sequence[float], Sequence[float]]

    def apart(self) -> list[int]:
        """Return the examples of the largest gains, then those of the largest losses, at most `SHOWN` of each."""
        differences = [after - before for before, after in zip(*self.scores, strict=True)]
        order = sorted(range(len(differences)), key=lambda index: -differences[index])
        gains = [index for index in order[:SHOWN] if differences[index] > 0]
        losses = [index for index in order[::-1][:SHOWN] if differences[index] < 0]
        return gains + losses


def keep_test_examples(run: RunContext, pair: Pair) -> None:
    """Generate what both models say to the test examples on which they differ most, and keep that in the run.

    Args:
        run: run with workers that generate.
        pair: the two models.
    """
    folder = run.folder
    indices = pair.apart()
    try:
        texts = [run.answer(each, "test", indices) for each in (pair.fft, pair.winner)]
    except RunFailed as error:  # that is no reason to have no verdict
        keep_traceback(error, folder.work / f"discordant.{TRACEBACK}")
        log_warning(f"the report goes without examples: {error.told}")
        return
    rows = [open_split(folder.data, "test")[index] for index in indices]
    tokenizer = load_tokenizer(str(folder.data / TOKENIZER))
    examples = [
        _example(pair, index, tokenizer.decode(row["prompt_ids"], skip_special_tokens=True), row["answer"], said)
        for index, row, said in zip(indices, rows, zip(*texts, strict=True), strict=True)
    ]
    _keep(folder, "test", run.config.evaluation.metric, examples)


def keep_task_examples(pair: Pair, task: str, metric: str, folder: RunFolder) -> None:
    """Keep the same of a benchmark task, whose texts are in the run already."""
    lines = [
        texts_file(folder.tasks / candidate.name, task, candidate.name).read_text(encoding="utf-8").splitlines()[1:]
        for candidate in (pair.fft, pair.winner)
    ]
    examples = []
    for index in pair.apart():
        before, after = (json.loads(texts[index]) for texts in lines)
        examples.append(_example(pair, index, before["prompt"], None, (before["text"], after["text"])))
    _keep(folder, task, metric, examples)


def _example(pair: Pair, index: int, prompt: str, answer: str | None, said: tuple[str, str]) -> Example:
    scores = dict(zip(("fft", "mft"), (values[index] for values in pair.scores), strict=True))
    return Example(index=index, prompt=prompt, answer=answer, fft=said[0], mft=said[1], scores=scores)


def _keep(folder: RunFolder, on: str, metric: str, examples: list[Example]) -> None:
    found = Differences.load(folder.discordant) if folder.discordant.exists() else Differences()
    others = [each for each in found.sets if each.on != on]
    Differences(sets=[*others, Discordant(on=on, metric=metric, examples=examples)]).save(folder.discordant)
