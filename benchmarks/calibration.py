"""How often a search says "beats FFT" when nothing is gained, and when two points are: simulated, selection included.

    .venv/bin/python benchmarks/calibration.py [--searches 2000] [--out benchmarks/results/calibration]

In each simulated search every trial's mask answers as FFT does, but for a share of the examples (the discordance);
the trial with the best validation score is judged by `mft_ray.verdict.decision.judge` on test examples, against FFT and
against continued FFT, as a real search does. The cases:

- none: no mask has a true gain. Continued FFT has none either, or (a baseline that is easy to beat) loses 5 points:
  then only the comparison with FFT stands between noise and a claim.
- all, one: every mask, or one of the trials, truly gains 2 points.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from keep_run import machine

from mft_ray.evaluation.statistics import interval
from mft_ray.runs.records import Verdict
from mft_ray.verdict.decision import Evidence, Rules, judge

GAIN = 0.02
RESAMPLES = 2000
SEARCHES = 2000
# Test examples, and the validation examples that a search of that size would have.
SIZES = {164: 200, 1319: 500, 6000: 2000}


@dataclass(frozen=True)
class Case:
    """One kind of search.

    Attributes:
        n: test examples.
        n_validation: examples that select.
        trials: masks to select from.
        accuracy: of FFT, truly.
        discordance: share of the examples on which a mask, or continued FFT, differs from FFT.
        gain: which masks truly gain `GAIN`.
        continued: what continued FFT truly gains.
    """

    n: int
    n_validation: int
    trials: int
    accuracy: float
    discordance: float
    gain: Literal["none", "all", "one"] = "none"
    continued: float = 0.0


@dataclass(frozen=True)
class Found:
    """What so many searches said.

    Attributes:
        case: kind of search.
        searches: simulated.
        better_than_fft: share that said that the mask is better than FFT.
        beats_fft: share that said that it is better than continued FFT too.
        ci95: of that share.
    """

    case: Case
    searches: int
    better_than_fft: float
    beats_fft: float
    ci95: tuple[float, float]


def cases() -> Iterator[Case]:
    """All kinds of search that are reported."""
    for (n, n_validation), trials, accuracy in product(SIZES.items(), (8, 32), (0.3, 0.8)):
        for discordance in (0.03, 0.15):  # the quickstart's masks; two tunings of one LLM on a benchmark
            size = (n, n_validation, trials, accuracy, discordance)
            yield Case(*size)
            yield Case(*size, continued=-0.05)
            yield Case(*size, gain="all")
            yield Case(*size, gain="one")


def simulate(case: Case, searches: int, seed: int = 0) -> Found:
    """Simulate searches of one kind."""
    rng = np.random.default_rng(seed)
    verdicts = [_search(case, rng) for _ in range(searches)]
    claims = [float(verdict.beats_fft) for verdict in verdicts]
    better = sum(verdict.better_than_fft for verdict in verdicts) / searches
    return Found(case, searches, better, sum(claims) / searches, interval(claims, binary=True))


def _search(case: Case, rng: np.random.Generator) -> Verdict:
    gains = np.zeros(case.trials)
    if case.gain != "none":
        gains[: case.trials if case.gain == "all" else 1] = GAIN
    right = int(rng.binomial(case.n_validation, case.accuracy))
    won, lost = np.array([_flips(case, gain) for gain in gains]).T
    validation = rng.binomial(case.n_validation - right, won) - rng.binomial(right, lost)
    winner = gains[rng.choice(np.flatnonzero(validation == validation.max()))]
    fft = rng.random(case.n) < case.accuracy
    mft, continued = (_answers(case, gain, fft, rng).tolist() for gain in (winner, case.continued))
    return judge(Evidence("exact_match", mft, fft.astype(float).tolist(), continued), Rules(RESAMPLES))


def _answers(case: Case, gain: float, fft: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    won, lost = _flips(case, gain)
    return np.where(rng.random(case.n) < np.where(fft, lost, won), ~fft, fft).astype(float)


def _flips(case: Case, gain: float) -> tuple[float, float]:
    """Chances that a wrong answer of FFT's becomes right, and a right one wrong."""
    discordance = max(case.discordance, abs(gain))
    return (discordance + gain) / 2 / (1 - case.accuracy), (discordance - gain) / 2 / case.accuracy


def _table(found: list[Found]) -> str:
    heads = ["n", "trials", "FFT", "discordance", "no gain", "and continued FFT −5 points", "all +2 points", "one +2"]
    lines = [f"| {' | '.join(heads)} |", "| --: " * len(heads) + "|"]
    grouped: dict[tuple[float, ...], list[str]] = {}
    for each in found:
        case = each.case
        key = (case.n, case.trials, case.accuracy, case.discordance)
        grouped.setdefault(key, []).append(f"{each.beats_fft:.1%}")
    for (n, trials, accuracy, discordance), shares in grouped.items():
        lines.append(f"| {n:,.0f} | {trials:.0f} | {accuracy:.0%} | {discordance:.0%} | {' | '.join(shares)} |")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--searches", type=int, default=SEARCHES)
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    options = arguments.parse_args()
    every, found, began = list(cases()), [], time.monotonic()
    with ProcessPoolExecutor(options.processes) as pool:
        for each in pool.map(simulate, every, [options.searches] * len(every)):
            found.append(each)
            left = (time.monotonic() - began) / len(found) * (len(every) - len(found))
            print(f"{len(found)} of {len(every)} kinds of search, about {left:.0f} s left", file=sys.stderr, flush=True)
    table = _table(found)
    print(table)
    if options.out:
        rows = [asdict(each) for each in found]
        content = {"machine": machine(), "gain": GAIN, "resamples": RESAMPLES, "rows": rows}
        options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        command = f".venv/bin/python benchmarks/calibration.py --searches {options.searches} --out {options.out}"
        head = [
            "# calibration",
            "",
            f"    {command}",
            "",
            f'The share of {options.searches:,} simulated searches that say "beats FFT"; what is simulated is in',
            "[benchmarks/calibration.py](../calibration.py), intervals in the JSON file beside this.",
            "",
        ]
        options.out.with_suffix(".md").write_text("\n".join(head) + "\n" + table + "\n")


if __name__ == "__main__":
    main()
