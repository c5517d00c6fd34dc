"""Why a trial ended, in words, with the numbers behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mft_ray.report.endings import ended_early, numbers, why
from mft_ray.report.html import render
from mft_ray.runs.reading import read
from mft_ray.runs.records import Trial
from mft_ray.training.job import Stop, StopReason

Make = Callable[..., Path]


def ended(stop: Stop) -> Trial:
    return Trial(trial_id="a", config={}, stopped_reason=stop.reason, stop=stop)


def test_each_rule_says_what_it_compared_with_what(make_run: Make) -> None:
    run = read(make_run())
    below = Stop(StopReason.BELOW_FFT, 300, 900, -0.018, 0.0, 0.004, 0.95, best=-0.021, projected=-0.018)
    assert numbers(ended(below), run) == (
        "Decided at step 300 of 900: its best difference to FFT on the same validation examples was −2.10 points, and "
        "going on as between its last two evaluations it would have ended at −1.80 points. The better of the two and "
        "the noise of that difference at 95 % confidence (0.40 points) make −1.40 points, which is still below FFT."
    )
    target = numbers(ended(Stop(StopReason.TARGET, 1200, 9000, 0.031, 0.02, 0.004, 0.975)), run)
    assert target.startswith("Decided at step 1,200 of 9,000: its difference to FFT")
    for part in ("was +3.10 points", "97.5 % confidence", "it is +2.70 points", "asks for +2.00 points"):
        assert part in target
    plateau = numbers(ended(Stop(StopReason.PLATEAU, 300, 900, 0.881, 0.88, 0.003, evaluations=4)), run)
    for part in ("last 4 evaluations", "scored 88.10 %", "before them 88.00 %", "one standard error", "(0.30 points)"):
        assert part in plateau


def test_what_no_rule_ended_has_no_numbers(make_run: Make) -> None:
    run = read(make_run())
    assert numbers(Trial(trial_id="a", config={}, stopped_reason="completed"), run) == ""
    assert numbers(ended(Stop(StopReason.GIVEN, 1, 2, 0.0, 0.0, 0.0)), run) == ""
    assert why(Trial(trial_id="a", config={}, stopped_reason="completed")) == "it used up all its steps"
    assert why(Trial(trial_id="a", config={}, stopped_reason="of a later version")) == "of a later version"


def test_the_report_says_it_of_every_trial_that_was_ended_early(make_run: Make) -> None:
    folder = make_run()
    early = ended_early(read(folder))
    assert [trial for trial, _, _ in early] == [f"trial{number:02d}" for number in (1, 2, 5, 6, 9, 10)]
    page = render(folder).read_text(encoding="utf-8")
    assert "By which numbers trials were ended early (6)" in page
    assert page.count("Decided at step 210 of 300") == 6
