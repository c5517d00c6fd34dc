"""What a worker keeps from job to job: the backbone on its device, the tokenizer, the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from mft_ray.data.encoded import EncodedRows
from mft_ray.models.artifacts import load_with
from mft_ray.models.loading import load_model, load_to_train, load_tokenizer
from mft_ray.models.quantized import QuantizedModel
from mft_ray.training.job import ScoreJob, TrainJob
from mft_ray.training.step.states import Rows, StateCache
from mft_ray.training.step.unselected import selected
from mft_ray.utils.files import read_json

_Thing = TypeVar("_Thing")


class Split:
    """A split, memory-mapped.

    Attributes:
        rows: its examples.
        lengths: tokens of each.
        answer_lengths: labelled tokens of each.
        name: what tells it from others.
    """

    def __init__(self, data: str, name: str) -> None:
        self.rows = EncodedRows.open(Path(data), name)
        self.lengths, self.answer_lengths = self.rows.lengths(), self.rows.answer_lengths()
        self.name = f"{Path(data) / name} {_written(Path(data) / name)}"

    def forward(
        self, rows: Sequence[Mapping[str, Any]], length: int, device: torch.device, packed: bool = False
    ) -> Rows:
        """Return which examples a forward is over.

        Args:
            rows: some of ``self.rows``.
            length: tokens of a row of the batch, padding included.
            device: device of the batch.
            packed: whether they lie one behind the other in one row.
        """
        return Rows(self.name, self.lengths, [row["place"] for row in rows], length, device, packed)


def _written(folder: Path) -> list[tuple[str, int, int]]:
    """Return what tells a folder's files from others that have had their names."""
    found = [(file.name, file.stat()) for file in sorted(folder.iterdir())]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in found]


class WorkerCache:
    """Loads what a job needs, or hands out what is there from the last job. One thing of each kind is kept.

    Args:
        device: device of this worker.

    Attributes:
        states: hidden states below what jobs train.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._things: dict[str, tuple[Any, Any]] = {}
        self.states = StateCache()

    def model(self, job: TrainJob) -> PreTrainedModel:
        """Return the job's model, on the device. A frozen one must be left as it was."""
        if job.unselected_dtype is not None:
            self._make_room("model")
            held = (job.model, job.dtype, job.attention, job.unselected_dtype, self.device)
            return self._keep("quantized", held, lambda: QuantizedModel(*held)).on(partial(selected, job))
        self._make_room("quantized")
        if not job.frozen or job.scaling.zero_stage == 3:
            # FFT changes it, and ZeRO-3 leaves it in pieces.
            self._things.pop("model", None)
            dtype, attention = job.dtype, job.attention
            model = load_model(job.model, dtype, attention) if job.frozen else load_to_train(job.model, attention)
        else:
            key = (job.model, job.dtype, job.attention)
            model = self._keep("model", key, lambda: load_model(*key))
        return model.to(self.device)

    def finished_model(self, job: ScoreJob) -> PreTrainedModel:
        """Return the model of a scoring job, on the device, with its mask or adapter on it for good if it has one."""
        if self.device.type != "cpu":  # where packing takes long, and the checkpoint itself is a mapped file
            self._make_room("quantized")
        key = (job.model, job.dtype, job.attention)
        if job.artifact is None:
            return self._keep("model", key, lambda: load_model(*key)).to(self.device)
        self._make_room("model")
        return load_with(job.model, job.artifact, job.dtype, job.attention, job.pretrained).to(self.device)

    def forget(self) -> None:
        """Let go of everything."""
        self._things.clear()
        self.states = StateCache()

    def tokenizer(self, path: str) -> Tokenizer:
        """Return the tokenizer of a model, or of prepared data."""
        return self._keep("tokenizer", path, lambda: load_tokenizer(path))

    def split(self, data: str, name: str) -> Split:
        """Return a split of prepared data."""
        return self._keep(name, data, lambda: Split(data, name))

    def scores(self, path: str) -> list[float]:
        """Return per-example scores from a file."""
        return self._keep("scores", path, lambda: read_json(path, list))

    def once(self, key: Any, make: Callable[[], list[float]]) -> list[float]:
        """Return scores of examples that follow from a key, which several jobs may ask for one after another.

        Args:
            key: all that they follow from.
            make: computes them.
        """
        return self._keep("once", key, make)

    def _make_room(self, kind: str) -> None:
        self._things.pop(kind, None)

    def _keep(self, kind: str, key: Any, make: Callable[[], _Thing]) -> _Thing:
        held, thing = self._things.get(kind, (None, None))
        if held != key:
            self._things.pop(kind, None)  # first, so that there are never two in memory
            thing = make()
            self._things[kind] = (key, thing)
        cache: _Thing = thing
        return cache
