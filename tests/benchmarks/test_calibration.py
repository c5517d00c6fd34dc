"""The verdict keeps its word: simulated searches, selection included. In full: benchmarks/results/calibration.md."""

from __future__ import annotations

import pytest
from calibration import Case, cases, simulate

SEARCHES = 300


@pytest.mark.parametrize("continued", [0.0, -0.05])
@pytest.mark.parametrize("n", [164, 1319])
def test_without_a_gain_few_searches_say_so(n: int, continued: float) -> None:
    found = simulate(Case(n, 200, trials=32, accuracy=0.3, discordance=0.15, continued=continued), SEARCHES)
    assert found.beats_fft <= found.better_than_fft
    assert found.beats_fft <= 0.05
    assert found.ci95[0] <= found.beats_fft <= found.ci95[1]


def test_a_gain_is_found_where_there_are_examples_enough() -> None:
    many, few = (simulate(Case(n, 500, trials=8, accuracy=0.8, discordance=0.06, gain="all"), 60) for n in (6000, 164))
    assert many.beats_fft > 0.9
    assert few.beats_fft < 0.3


def test_choosing_and_proving_on_the_same_examples_would_not_be_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the simulation is there to notice: with the best of many by *test* score, noise is called a gain."""
    import calibration

    def peeking(case: Case, rng):
        fft = rng.random(case.n) < case.accuracy
        masks = [calibration._answers(case, 0.0, fft, rng) for _ in range(case.trials)]
        best = max(masks, key=lambda mask: mask.sum())
        rules = calibration.Rules(calibration.RESAMPLES)
        return calibration.judge(calibration.Evidence("exact_match", best.tolist(), fft.astype(float).tolist()), rules)

    monkeypatch.setattr(calibration, "_search", peeking)
    assert simulate(Case(1319, 500, trials=32, accuracy=0.3, discordance=0.15), 60).beats_fft > 0.2


def test_every_kind_of_search_that_is_promised_is_reported() -> None:
    kinds = {(case.n, case.trials, case.accuracy) for case in cases()}
    assert kinds == {(n, trials, share) for n in (164, 1319, 6000) for trials in (8, 32) for share in (0.3, 0.8)}
