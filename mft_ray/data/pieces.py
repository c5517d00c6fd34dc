"""A split encoded piece by piece: by several processes where it takes long, and gone on with after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import cloudpickle  # type: ignore[import-untyped]
import datasets
from joblib import Parallel, delayed  # type: ignore[import-untyped]
from joblib.externals.loky.process_executor import TerminatedWorkerError  # type: ignore[import-untyped]

from mft_ray.data.accounting import SplitCounts
from mft_ray.data.encoding import IGNORED, Encoder, How
from mft_ray.data.examples import Example
from mft_ray.data.rows.reading import quiet
from mft_ray.utils.files import read_json, replacing, write_json
from mft_ray.utils.formatting import duration

ANSWERS = "answer_tokens"  # how many of a row's tokens are learned
_TOKENS = datasets.List(datasets.Value("int32"))
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "input_ids": _TOKENS,
        "labels": _TOKENS,
        "prompt_ids": _TOKENS,
        "answer": datasets.Value("string"),
        "source": datasets.Value("string"),
        ANSWERS: datasets.Value("int32"),
    }
)

_PIECE = 2_000  # examples
_WORTH_S = 20.0  # seconds of work from which other processes are begun, which load a tokenizer each
_TELL_S = 10.0
_HOW, _COUNTS = "how.pickle", "counts.json"


class Pieces:
    """Encoded examples in files, each found again by what it was made from.

    Args:
        folder: folder for the files, gone when the data is there.
        how: how examples are encoded.
        log: told how far it is where it takes long.
    """

    def __init__(self, folder: Path, how: How, log: Callable[[str], None]) -> None:
        self._folder, self._how, self._log = folder, how, log
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / _HOW
        with replacing(self._file) as partial:
            partial.write_bytes(cloudpickle.dumps(how))
        self._named = _digest([_identity(how), *map(version, ("transformers", "tokenizers", "datasets"))])

    def encode(self, examples: Sequence[Example], name: str, counts: SplitCounts) -> datasets.Dataset:
        """Encode a split.

        Args:
            examples: of the split.
            name: what it is called in messages.
            counts: what became of each example, which is filled.

        Returns:
            Its rows, memory-mapped.
        """
        parts = [examples[start : start + _PIECE] for start in range(0, len(examples), _PIECE)]
        paths = [self._folder / self._name(part) for part in parts]
        missing = [(part, path) for part, path in zip(parts, paths, strict=True) if not path.exists()]
        if len(missing) < len(parts):
            self._log(f"{name}: {sum(map(len, parts)) - sum(len(part) for part, _ in missing):,} examples are encoded")
        tell = _Told(self._log, name, sum(len(part) for part, _ in missing))
        for done in self._encoded(missing):
            tell(done)
        found = [read_json(path / _COUNTS, dict) for path in paths]
        for part in found:
            counts.add_part(part)
        full = [str(path) for path, part in zip(paths, found, strict=True) if part["rows"]]
        return datasets.concatenate_datasets([datasets.load_from_disk(path) for path in full]) if full else _dataset([])

    def _encoded(self, missing: Sequence[tuple[Sequence[Example], Path]]) -> Iterator[int]:
        """Encode pieces; yield the examples of each."""
        began = time.monotonic()
        for number, (part, path) in enumerate(missing):
            left, processes = len(missing) - number, min(_processors(), len(missing) - number)
            if number and processes > 1 and (time.monotonic() - began) / number * left > _WORTH_S:
                yield from self._by_others(missing[number:], processes)
                return
            _write(self._how, part, path)
            yield len(part)

    def _by_others(self, missing: Sequence[tuple[Sequence[Example], Path]], processes: int) -> Iterator[int]:
        tasks = (delayed(_write_there)(str(self._file), part, str(path)) for part, path in missing)
        try:
            yield from Parallel(n_jobs=processes, backend="loky", return_as="generator_unordered")(tasks)
        except TerminatedWorkerError:
            self._log(f"one of {processes} processes that encode was killed, perhaps for want of memory; one goes on")
            for part, path in missing:
                if not path.exists():
                    _write(self._how, part, path)
                    yield len(part)

    def _name(self, part: Sequence[Example]) -> str:
        return _digest([self._named, *map(astuple, part)])


class _Told:
    """Says now and then how far it is."""

    def __init__(self, log: Callable[[str], None], name: str, examples: int) -> None:
        self._log, self._name, self._examples = log, name, examples
        self._began = self._last = time.monotonic()
        self._done = 0

    def __call__(self, done: int) -> None:
        self._done += done
        now = time.monotonic()
        if now - self._last > _TELL_S and self._done < self._examples:
            self._last = now
            left = duration((now - self._began) / self._done * (self._examples - self._done))
            self._log(f"{self._name}: {self._done:,} of {self._examples:,} examples encoded, about {left} left")


def _write(how: How, part: Sequence[Example], path: Path) -> None:
    """Encode a piece into a folder: its rows, and what became of its examples, called by their ids."""
    counts = SplitCounts(place_of=str)
    encoder = Encoder(how, counts)
    rows = [
        {**row, ANSWERS: sum(label != IGNORED for label in row["labels"][1:])}
        for example in part
        for row in encoder.rows(example)
    ]
    with replacing(path) as partial, quiet():
        partial.mkdir()
        if rows:  # without any, there is nothing that datasets could save
            _dataset(rows).save_to_disk(str(partial))
        write_json(partial / _COUNTS, counts.of_part())


def _dataset(rows: Sequence[Mapping[str, object]]) -> datasets.Dataset:
    # By columns: a list of no rows has none.
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)


def _write_there(how: str, part: Sequence[Example], path: str) -> int:
    """As `_write`, in another process; return the examples."""
    _write(_loaded(how), part, Path(path))
    return len(part)


@lru_cache(maxsize=1)
def _loaded(file: str) -> How:
    found: How = pickle.loads(Path(file).read_bytes())
    return found


def _identity(how: How) -> list[object]:
    """Return all that decides about tokens."""
    tokenizer = how.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    about = [type(tokenizer).__name__, repr(tokenizer), tokenizer.chat_template, vocabulary]
    return [*about, how.max_length, how.system, how.too_long, _own_code()]


@lru_cache(maxsize=1)
def _own_code() -> str:
    """Return what tells this version of the package's encoding from others, between releases too."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.blake2b(b"".join(file.read_bytes() for file in files)).hexdigest()


def _digest(things: Sequence[object]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for thing in things:
        whole.update(json.dumps(thing, default=str).encode() + b"\n")
    return whole.hexdigest()


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
