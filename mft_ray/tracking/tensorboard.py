"""``RUN/tensorboard``: a folder of events for FFT, continued FFT and every trial."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from tensorboardX import FileWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import hparams, scalar

from mft_ray.tracking.metrics import DELTA, SCORE, of_end, of_evaluation
from mft_ray.tracking.snapshot import CONTINUED, FFT, Snapshot, Training

_LENGTH, _CHECKSUM = struct.Struct("<Q"), 4
# A scalar's name and its optimizer step.
_Place = tuple[str, int]
_EVENTS = "events.out.tfevents."
_HPARAMS = "_hparams_/"


class TensorBoard:
    """Keeps the events of a run folder: adds what is missing, and makes those anew that are not of its records.

    What is there is read from the event files themselves, so that an interruption at any point leaves no event out and
    none twice. A training whose files are damaged has them written anew.

    Args:
        folder: folder of the events; those of a training lie in one that is named as it is.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done: dict[str, Training] = {}
        self._there: dict[str, dict[_Place, float]] = {}
        self._writers: dict[str, FileWriter] = {}

    def sync(self, snapshot: Snapshot, final: bool) -> None:
        """Write what is new.

        Args:
            snapshot: search as it is now.
            final: whether the search has come to its end, or is interrupted.
        """
        names = {training.name for training in snapshot.trainings}
        for path in self._folder.glob("*"):
            if path.is_dir() and path.name not in names:  # a trial that another has taken the place of
                self._forget(path.name)
        for training in snapshot.trainings:
            if self._done.get(training.name) is not training:
                self._write(training)
                self._done[training.name] = training

    def close(self) -> None:
        """Close the event files."""
        for name in list(self._writers):
            self._writers.pop(name).close()

    def _write(self, training: Training) -> None:
        name, wanted = training.name, _wanted(training)
        if name not in self._there:
            self._there[name] = self._read(name)
        there = self._there[name]
        # A score is written in 32 bits.
        if any(place not in wanted or np.float32(wanted[place][0]) != np.float32(there[place]) for place in there):
            self._forget(name)
            there = self._there.setdefault(name, {})
        missing = {place: event for place, event in wanted.items() if place not in there}
        if missing:
            writer = self._writer(name)
            for (tag, step), (value, time) in missing.items():
                if tag == _HPARAMS:
                    self._write_settings(writer, training, time)
                else:
                    writer.add_summary(scalar(tag, value), step, time)
                there[tag, step] = value
            writer.flush()
        if training.end is not None:
            self._there.pop(name)
            if name in self._writers:
                self._writers.pop(name).close()

    def _read(self, name: str) -> dict[_Place, float]:
        try:
            return dict(_events(self._folder / name))
        except (EOFError, DecodeError):  # half-written, or something else: nobody could read on behind it
            self._forget(name)
            return {}

    def _write_settings(self, writer: FileWriter, training: Training, time: float) -> None:
        """Write what the HParams page shows of a training, last: its settings, and that it has ended."""
        settings = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in training.params.items()
        }
        columns, start, end = hparams(settings, dict.fromkeys((SCORE, DELTA), 0.0))
        # The page takes its columns from one of the trainings: a trial's, which has all settings.
        for summary in (start, end) if training.name in (FFT, CONTINUED) else (columns, start, end):
            writer.add_summary(summary, 0, time)

    def _writer(self, name: str) -> FileWriter:
        if name not in self._writers:
            # Files of the same second would have the same name, and the later one take the earlier one's place.
            number = len(list((self._folder / name).glob(f"{_EVENTS}*")))
            self._writers[name] = FileWriter(str(self._folder / name), filename_suffix=f".{number:04d}")
        return self._writers[name]

    def _forget(self, name: str) -> None:
        if name in self._writers:
            self._writers.pop(name).close()
        self._there.pop(name, None)
        self._done.pop(name, None)
        shutil.rmtree(self._folder / name, ignore_errors=True)


def _wanted(training: Training) -> dict[_Place, tuple[float, float]]:
    """Return every event of a training: value and time in seconds since the epoch, by place."""
    found: dict[_Place, tuple[float, float]] = {}
    time = training.began
    for evaluation in training.history:
        time = training.began + evaluation.seconds
        found |= {(tag, evaluation.step): (value, time) for tag, value in of_evaluation(evaluation).items()}
    if training.end is not None:
        found |= {(tag, training.end.step): (value, time) for tag, value in of_end(training.end).items()}
        found[_HPARAMS, 0] = (0.0, time)
    return found


def _events(folder: Path) -> Iterator[tuple[_Place, float]]:
    """Yield the events of a folder, by place.

    Raises:
        EOFError: a file ends within a record.
        DecodeError: a record is no event.
    """
    for path in sorted(folder.glob(f"{_EVENTS}*")):
        for record in _records(path.read_bytes()):
            event = Event.FromString(record)
            for value in event.summary.value:
                if not value.tag.startswith(_HPARAMS):
                    yield (value.tag, event.step), value.simple_value
                elif value.tag.endswith("session_end_info"):  # the last of them
                    yield (_HPARAMS, 0), 0.0


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file of TensorFlow's: a length, its checksum, the record, its checksum."""
    place = 0
    while place < len(content):
        if place + _LENGTH.size > len(content):
            raise EOFError
        (length,) = _LENGTH.unpack_from(content, place)
        begin = place + _LENGTH.size + _CHECKSUM
        place = begin + length + _CHECKSUM
        if place > len(content):
            raise EOFError
        yield content[begin : begin + length]
