"""Validation examples on which trials disagree: what tells them from each other where their means are close."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mft_ray.errors import UserError
from mft_ray.evaluation.example_scores import ExampleScores
from mft_ray.models.names import SCORES
from mft_ray.runs.folder import RunFolder
from mft_ray.utils.files import Damaged, read_json

SHOWN = 20
_MAX_CHARS = 2000
_SPLIT = "validation"
_GONE = (
    "its scores of single examples are not there: only the best trials keep theirs (search.keep), and those of earlier "
    "versions have none"
)


@dataclass(frozen=True)
class Example:
    """A validation example.

    Attributes:
        index: its place in the split.
        scores: its score by each trial.
        fft: its score by FFT; None where that is not kept.
        prompt: its prompt, empty where the data cannot be read.
        answer: the answer that is wanted, likewise.
    """

    index: int
    scores: tuple[float, ...]
    fft: float | None
    prompt: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Disagreement:
    """What some trials make of the same examples.

    Attributes:
        trials: trials that are compared; fewer than two where there is nothing to compare.
        without: why each of the others is not, by trial.
        metric: metric of the scores.
        n: number of examples.
        differing: number of those on which the trials' scores differ.
        right_or_wrong: whether a score says only whether an answer is right.
        alone: for each trial, on how many examples it alone is right; of scores of other kinds, has the best one.
        examples: those on which the scores lie furthest apart, at most `SHOWN`.
        unread: why no prompts can be shown; empty where they can.
    """

    trials: tuple[str, ...]
    without: dict[str, str]
    metric: str = ""
    n: int = 0
    differing: int = 0
    right_or_wrong: bool = False
    alone: tuple[int, ...] = ()
    examples: tuple[Example, ...] = ()
    unread: str = ""


def disagreement(root: Path, trials: Sequence[str]) -> Disagreement:
    """Return where some trials of a run disagree.

    Args:
        root: run folder.
        trials: identifiers of trials.
    """
    folder = RunFolder(root)
    kept, without = _kept(folder, trials)
    if len(kept) < 2:
        return Disagreement(tuple(kept), without)
    metric = next(iter(kept.values())).metric
    scores = np.stack([each.values for each in kept.values()])
    fft = _of_fft(folder, metric, scores.shape[1])
    places = furthest_apart(scores)
    texts, unread = _texts(folder.data, places)
    examples = [
        Example(place, tuple(map(float, scores[:, place])), None if fft is None else float(fft[place]), *text)
        for place, text in zip(places, texts, strict=True)
    ]
    best = scores == scores.max(axis=0)
    alone = (best & (best.sum(axis=0) == 1)).sum(axis=1)
    return Disagreement(
        trials=tuple(kept),
        without=without,
        metric=metric,
        n=scores.shape[1],
        differing=int(np.any(scores != scores[0], axis=0).sum()),
        right_or_wrong=bool(np.isin(scores, (0, 1)).all()),
        alone=tuple(map(int, alone)),
        examples=tuple(examples),
        unread=unread,
    )


def furthest_apart(scores: NDArray[np.float32]) -> list[int]:
    """Return the examples whose scores lie furthest apart, in turns for each set of trials that has the best score.

    So each way of disagreeing is seen, also where one is more frequent or goes further than another.

    Args:
        scores: a row for each trial, a column for each example.
    """
    spread = scores.max(axis=0) - scores.min(axis=0)
    ways: dict[tuple[bool, ...], list[int]] = defaultdict(list)
    # Sorting is stable: of equals the first example comes first.
    for place in np.argsort(-spread, kind="stable"):
        if spread[place] > 0:
            ways[tuple(scores[:, place] == scores[:, place].max())].append(int(place))
    most = max(map(len, ways.values()), default=0)
    turns = [places[turn] for turn in range(min(most, SHOWN)) for places in ways.values() if turn < len(places)]
    return turns[:SHOWN]


def _kept(folder: RunFolder, trials: Sequence[str]) -> tuple[dict[str, ExampleScores], dict[str, str]]:
    """Return the scores of trials that can be compared, and why others cannot."""
    kept: dict[str, ExampleScores] = {}
    without: dict[str, str] = {}
    for trial in trials:
        try:
            found = ExampleScores.load(folder.trial(trial) / SCORES)
        except FileNotFoundError:
            without[trial] = _GONE
            continue
        except Damaged as error:
            without[trial] = str(error)
            continue
        first = next(iter(kept.values()), found)
        if found.metric != first.metric or found.values.shape != first.values.shape:
            without[trial] = f"it was scored by another metric ({found.metric}) or on other examples"
        else:
            kept[trial] = found
    return kept, without


def _of_fft(folder: RunFolder, metric: str, n: int) -> NDArray[Any] | None:
    try:
        values = np.asarray(read_json(folder.scores_of("fft", _SPLIT, metric), list), dtype=float)
    except (FileNotFoundError, Damaged):
        return None
    return values if values.shape == (n,) else None


def _texts(data: Path, places: Sequence[int]) -> tuple[list[tuple[str, str]], str]:
    """Return prompt and answer of some examples, and why they cannot be read if so."""
    if not places:
        return [], ""
    # Imported late: who looks at no examples does not wait for these.
    from mft_ray.data.store import TOKENIZER, open_split

    try:
        rows = open_split(data, _SPLIT)
        tokenizer = _tokenizer(str(data / TOKENIZER))
        found = [rows[place] for place in places]
        said = [(tokenizer.decode(row["prompt_ids"], skip_special_tokens=True), row["answer"]) for row in found]
    except (UserError, Damaged, OSError, ValueError, IndexError, KeyError) as error:
        return [("", "")] * len(places), f"{type(error).__name__}: {error}"
    return [(_short(prompt), _short(str(answer))) for prompt, answer in said], ""


@lru_cache(4)
def _tokenizer(path: str) -> Any:
    # As `mft_ray.models.loading` does, without all that a model needs, which takes long and prints lines of its own.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)


def _short(text: str) -> str:
    left = len(text) - _MAX_CHARS
    return text if left <= 0 else f"{text[:_MAX_CHARS]}… ({left:,} more characters)"
