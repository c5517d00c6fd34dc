"""What a search's end says to do next: each case, with commands that this version takes as they stand."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mft_ray.cli.main import parser
from mft_ray.cli.options import read_run
from mft_ray.config import parse_config
from mft_ray.report.next_steps import Step, lines, next_steps
from mft_ray.runs.reading import read

Made = Callable[..., list[Step]]
NO = {
    "beats_fft": False,
    "better_than_fft": False,
    "worse_than_fft": False,
    "delta": 0.004,
    "ci95": [-0.004, 0.012],
    "p_value": 0.3,
    "continued_fft": 0.88,
    "beats_continued_fft": False,
    "detectable": 0.011,
    "needed": None,
}


def checked(steps: list[Step]) -> list[Step]:
    """The steps, once all their commands have been parsed, and the settings that they name."""
    for step in steps:
        if step.command is not None:
            [program, *words] = shlex.split(step.command)
            assert program == "mft-ray"
            options = parser(words[:1]).parse_args(words)
            if words[0] == "tune":
                read_run(options)
    return steps


@pytest.fixture
def ended(make_run: Callable[..., Path]) -> Made:
    """Return the steps of a made-up search whose verdict, baseline, configuration and trials differ as given."""

    def make(
        verdict: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        baseline: dict[str, Any] | None = None,
        trials: list[dict[str, Any]] | None = None,
        without_verdict: bool = False,
    ) -> list[Step]:
        folder = make_run(name="it", verdict=not without_verdict)
        if not without_verdict:
            _change(folder / "verdict.json", verdict or {})
        _change(folder / "baseline.json", baseline or {})
        board = json.loads((folder / "leaderboard.json").read_text())
        if trials is not None:
            board["trials"] = trials
        (folder / "leaderboard.json").write_text(json.dumps(board))
        tree = {
            "run": {"name": "it"},
            "model": {"architecture": {"model_type": "llama"}},
            "data": {"task": "arithmetic", "digits": 2, "n_train": 1000, "n_validation": 200, "n_test": 6000},
            **(config or {}),
        }
        parse_config(tree).save(folder / "config.yaml")
        (folder / "best").mkdir()
        (folder / "best" / "mask.safetensors").touch()
        return checked(next_steps(read(folder)))

    return make


def _change(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def trial(place: int, reason: str = "completed", **settings: Any) -> dict[str, Any]:
    config = {"ratio": 0.2 + place / 1000, "lr": 1e-3, "layers": "0-3", "target": "both"}
    score = None if reason == "failed" else 0.9 - place / 100
    return {
        "trial_id": f"trial{place}",
        "config": {**config, "init": "normal", "schedule": "anneal", **settings},
        "score": score,
        "delta_fft": score,
        "stopped_reason": reason,
    }


def told(steps: list[Step], word: str) -> Step:
    found = [step for step in steps if word in step.why]
    assert len(found) == 1, (word, steps)
    return found[0]


def test_a_gain_is_exported_and_tried_with_other_seeds(ended: Made, tmp_path: Path) -> None:
    export, seeds, share = ended()
    assert export.command == f"mft-ray export {tmp_path}/run --out {tmp_path}/run-model"
    assert seeds.command == (
        f"mft-ray tune --config {tmp_path}/run/config.yaml --set run.dir={tmp_path}/run-seeds --set verdict.seeds=3"
    )
    assert share.command == f"mft-ray push {tmp_path}/run OWNER/run --dry-run {tmp_path}/run-card"


def test_a_gain_of_a_model_that_reads_text_is_tried_on_other_tasks(ended: Made) -> None:
    steps = ended(config={"model": {"path": "owner/name"}, "evaluation": {"tasks": ["gsm8k"]}})
    command = told(steps, "elsewhere").command
    assert command is not None
    assert "--tasks ifeval" in command
    assert "run/best/mask.safetensors" in command


def test_a_gain_that_seeds_have_confirmed_is_not_tried_with_more(ended: Made) -> None:
    spread = {"mean": 0.02, "sd": 0.001, "ci95": [0.018, 0.022]}
    seeds = {"n": 3, "runs": [], "delta": spread, "within_noise": False}
    steps = ended({"seeds": seeds}, config={"verdict": {"seeds": 3}})
    assert not any("seed" in step.why for step in steps)


def test_a_gain_within_seed_noise_wants_more_seeds(ended: Made) -> None:
    spread = {"mean": 0.02, "sd": 0.1, "ci95": [-0.018, 0.022]}
    seeds = {"n": 3, "runs": [], "delta": spread, "within_noise": True}
    steps = ended({"seeds": seeds, "beats_fft": False}, config={"verdict": {"seeds": 3}})
    assert "verdict.seeds=6" in str(told(steps, "within seed noise").command)


def test_a_gain_over_fft_that_fft_continued_has_too_wants_a_longer_fft(ended: Made) -> None:
    steps = ended({"beats_fft": False, "beats_continued_fft": False, "continued_fft": 0.91})
    assert "fft.train.patience=10" in str(told(steps[:1], "more to learn").command)
    assert not any("One seed gained" in step.why for step in steps)


def test_of_fft_continued_that_is_as_good_as_fft_nothing_is_known(ended: Made) -> None:
    gain = {"beats_fft": False, "beats_continued_fft": False, "continued_fft": 0.885, "detectable": 0.011}
    first, *_ = ended(gain)
    assert first.command is None
    assert "training FFT on gains too" in first.why


def test_a_difference_that_the_test_examples_cannot_show_is_none(ended: Made) -> None:
    assert not any("more to learn" in step.why for step in ended({**NO, "continued_fft": 0.886}))


def test_what_could_not_be_run_is_tried_again(ended: Made, tmp_path: Path) -> None:
    step = told(ended({**NO, "not_run": {"continued_fft": "out of memory"}}), "could not be run")
    assert step.command == f"mft-ray tune --resume {tmp_path}/run"


def test_no_verdict_goes_on(ended: Made, tmp_path: Path) -> None:
    assert [step.command for step in ended(without_verdict=True)] == [f"mft-ray tune --resume {tmp_path}/run"]


@pytest.mark.parametrize(
    ("needed", "digits", "said", "setting"),
    [
        (None, 2, "cannot show a gain of less than 1.10 points. A smaller one may be there", None),
        (9_120, 2, "takes about 9,200", "data.n_test=9200"),
        (90_000, 2, "more than 2-digit arithmetic has left", None),
        (900_000, 2, "too small to be worth showing", None),
    ],
)
def test_power(ended: Made, needed: int | None, digits: int, said: str, setting: str | None) -> None:
    step = told(ended({**NO, "needed": needed}), "cannot show a gain")
    assert said in step.why
    assert (setting is None) == (step.command is None)
    assert setting is None or setting in str(step.command)


def test_power_of_a_users_own_data_names_the_settings(ended: Made) -> None:
    own = {"data": {"train": "/d/train.jsonl"}, "model": {"path": "owner/name"}}
    steps = ended({**NO, "needed": 9_120}, config=own)
    step = told(steps, "data.test and data.n_test")
    assert step.command is None


def test_few_trials_want_more(ended: Made, tmp_path: Path) -> None:
    step = told(ended(NO, trials=[trial(place) for place in range(4)], config={"search": {"trials": 4}}), "are few")
    assert step.command == f"mft-ray tune --resume {tmp_path}/run --set search.trials=16 --look-again"
    assert "drawn at random" in step.why


def test_more_trials_of_a_budget_that_is_spent_want_a_larger_one(ended: Made, tmp_path: Path) -> None:
    work = tmp_path / "run" / "work"
    work.mkdir(parents=True)
    (work / "budget-spent").touch()
    search = {"trials": 4, "budget": {"hours": 1.5, "tokens": 3_000_000}}
    step = told(ended(NO, trials=[trial(0)], config={"search": search}), "are few")
    assert "search.budget.hours=3.0 --set search.budget.tokens=6000000 --look-again" in str(step.command)


def test_many_trials_are_not_few(ended: Made) -> None:
    many = [trial(place, ratio=0.1 + place / 100) for place in range(20)]
    assert not any("are few" in step.why for step in ended(NO, trials=many, config={"search": {"trials": 20}}))


@pytest.mark.parametrize(
    ("values", "name", "side", "range_"),
    [
        ([0.48, 0.49, 0.5], "ratio", "upper", "{low: 0.02, high: 0.95}"),
        ([0.02, 0.021, 0.03], "ratio", "lower", "{low: 0.005, high: 0.5}"),
        ([9e-3, 8e-3, 1e-2], "lr", "upper", "{low: 2.0e-05, high: 0.1, log: true}"),
        ([2e-5, 2.1e-5, 3e-5], "lr", "lower", "{low: 2.0e-06, high: 0.01, log: true}"),
    ],
)
def test_the_best_at_an_edge_of_the_space_want_a_wider_one(
    ended: Made, values: list[float], name: str, side: str, range_: str
) -> None:
    trials = [trial(place, **{name: value}) for place, value in enumerate(values)] + [trial(9)]
    step = told(ended(NO, trials=trials), f"{side} edge of search.space.{name}")
    assert step.command is not None
    words = shlex.split(step.command)
    assert f"search.space.{name}={range_}" in words
    config, _ = read_run(parser(words[1:2]).parse_args(words[1:]))
    assert config is not None
    space = getattr(config.search.space, name)
    assert (space.low, space.high) != (0.02, 0.5)


def test_an_edge_of_a_list_or_a_path_is_named_without_a_command(ended: Made) -> None:
    space = {"ratio": [0.1, 0.2, 0.3], "train.warmup": {"low": 0, "high": 0.1}}
    trials = [trial(place, ratio=0.3, **{"train.warmup": 0.05, "lr": 1e-3 + place / 1e5}) for place in range(4)]
    step = told(ended(NO, trials=trials, config={"search": {"space": space}}), "upper edge of search.space.ratio")
    assert step.command is None


def test_the_best_inside_the_space_say_nothing_of_edges(ended: Made) -> None:
    assert not any("edge" in step.why for step in ended(NO, trials=[trial(place) for place in range(5)]))


@pytest.mark.parametrize(
    ("reason", "said", "setting"),
    [
        ("below_fft", "5 ended below FFT", "search.stop.below_fft=false"),
        ("plateau", "5 no longer improved", None),
        ("failed", "5 failed", None),
    ],
)
def test_trials_that_were_ended_early_are_counted_by_reason(
    ended: Made, reason: str, said: str, setting: str | None
) -> None:
    trials = [trial(0), trial(1), *(trial(place, reason) for place in range(2, 7))]
    step = told(ended(NO, trials=trials), "ended early")
    assert said in step.why
    assert (setting is None) == (step.command is None)
    assert setting is None or setting in str(step.command)


def test_a_new_search_keeps_the_fft_model_that_was_trained(ended: Made, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    trials = [trial(0), *(trial(place, "below_fft") for place in range(1, 7))]
    changes = {"model": {"path": "owner/name"}}
    step = told(ended(NO, changes, {"model": str(tmp_path / "kept")}, trials), "ended early")
    assert f"--set model.path={tmp_path}/kept --set fft.given=true" in str(step.command)


@pytest.mark.parametrize(
    ("stopped", "fft", "setting"),
    [
        ("plateau", {}, "fft.train.patience=10"),
        ("completed", {"train": {"steps": 500}}, "fft.train.steps=1000"),
        ("completed", {"train": {"epochs": 3}}, "fft.train.epochs=6"),
    ],
)
def test_fft_that_got_better_when_trained_on_wants_more_of_it(
    ended: Made, stopped: str, fft: dict[str, Any], setting: str
) -> None:
    steps = ended({**NO, "continued_fft": 0.92}, {"fft": fft}, {"stopped": stopped})
    step = told(steps, "FFT had more to learn")
    assert setting in shlex.split(str(step.command))
    assert "model.path" not in str(step.command)


def test_a_given_fft_model_is_for_its_user_to_train_on(ended: Made) -> None:
    given = {"fft": {"given": True}, "model": {"path": "owner/name"}}
    step = told(ended({**NO, "continued_fft": 0.92}, given), "Fine-tune owner/name further")
    assert step.command is None


def test_a_mask_that_is_worse_is_not_a_matter_of_power(ended: Made) -> None:
    steps = ended({**NO, "worse_than_fft": True, "delta": -0.1, "ci95": [-0.2, -0.05]})
    assert steps
    assert not any("cannot show" in step.why for step in steps)


def test_a_configuration_of_another_version_gives_no_commands_of_this_one(
    ended: Made, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_run()
    (folder / "config.yaml").write_text("study: {}\n")
    assert [step.command for step in next_steps(read(folder))][1:] == []


def test_lines_have_each_command_alone(ended: Made) -> None:
    said = lines([Step("Do this.", "mft-ray tune --resume x"), Step("Know that.")])
    assert said == ["what next", "- Do this.", "    mft-ray tune --resume x", "- Know that."]
    assert lines([]) == []
