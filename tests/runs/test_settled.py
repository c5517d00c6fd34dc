"""A stage that has begun keeps the settings that it was made with; what is changed under it is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mft_ray.comparison.run import compare
from mft_ray.config import Config, parse_config
from mft_ray.config.stages import FREE, MADE_FROM, flatten, nested, stages_of
from mft_ray.errors import UserError
from mft_ray.experiments.run import run_experiments
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.once.train import train_once
from mft_ray.runs.settled import Settled, check_settled
from mft_ray.searches.pipeline import search

Changed = Callable[..., Config]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    for path in (folder.data, folder.trials):
        path.mkdir(parents=True)
    folder.settled.write_text('{"schema": 1, "stages": {}}')
    return folder


@pytest.fixture
def changed(tiny: dict[str, Any]) -> Changed:
    """The tiny search's configuration with some settings changed, by path."""

    def make(**settings: Any) -> Config:
        flat = flatten(parse_config(tiny).model_dump(mode="json"))
        return parse_config(nested({**flat, **{path.replace("__", "."): value for path, value in settings.items()}}))

    return make


def begun(folder: RunFolder, config: Config, *stages: Any) -> None:
    settled = check_settled(folder, config)
    for stage in stages:
        settled.begin(stage)
    config.save(folder.config)


def trial(folder: RunFolder, name: str) -> None:
    folder.trial(name).mkdir()
    (folder.trial(name) / "config.json").write_text("{}")


def test_every_setting_is_settled_by_a_stage_or_free(changed: Changed) -> None:
    config = changed(**{"fft.scaling": {"workers": 1}})
    flat = flatten(config.model_dump(mode="json"))
    assert nested(flat) == config.model_dump(mode="json")
    for path in {*FREE, *MADE_FROM} - {"method"}:
        assert any(f"{each}.".startswith(f"{path}.") for each in flat), path
    of_a_search = {path for path in flat if {"data", "baseline", "trials", "verdict"} & set(stages_of(path))}
    free = {path for path in flat if not stages_of(path)}
    assert len(free) > len(FREE)
    assert {path.split(".")[0] for path in flat.keys() - of_a_search - free} == {"compare", "experiment"}


@pytest.mark.parametrize(
    ("path", "value", "stage"),
    [
        ("data.n_train", 50, "data"),
        ("run.seed", 7, "data"),
        ("data.chat_template", "tulu", "data"),
        ("model.dtype", "bfloat16", "baseline"),
        ("fft.train.lr", 1e-4, "baseline"),
        ("fft.given", True, "baseline"),
        ("evaluation.metric", "answer_logprob", "baseline"),
        ("evaluation.while_training", "answer_logprob", "baseline"),
        ("scaling.zero_stage", 2, "baseline"),
        ("scaling.workers", 2, "baseline"),
        ("mask.scope", "layer", "trials"),
        ("train.lr", 1e-5, "trials"),
        ("train.steps", 31, "trials"),
        ("lora.rank", 2, "trials"),
        ("search.method", "lora", "trials"),
        ("search.sampler", "gp", "trials"),
        ("search.space.layers", ["0-1"], "trials"),
        ("search.stop.plateau", None, "trials"),
        ("search.extra_points", [{"ratio": 0.3}], "trials"),
        ("search.seed", 5, "trials"),
        ("fft.continued_lr", 1e-4, "trials"),
        ("verdict.seeds", 3, "verdict"),
        ("evaluation.resamples", 600, "verdict"),
        ("evaluation.extra", ["answer_logprob"], "verdict"),
        ("run.export_model", False, "verdict"),
    ],
)
def test_a_setting_changes_until_its_stage_begins(
    folder: RunFolder, changed: Changed, path: str, value: Any, stage: Any
) -> None:
    stages = ["data", "baseline", "trials", "verdict"]
    before, new = changed(), changed(**{path: value})
    was = flatten(before.model_dump(mode="json"))[path]
    begun(folder, before, *stages[: stages.index(stage)])
    check_settled(folder, new)  # the stage has not begun
    begun(folder, before, stage)
    with pytest.raises(UserError) as error:
        check_settled(folder, new)
    shown = "null" if was is None else str(was)
    now = "null" if value is None else str(value)
    assert f"{path} was {shown} for the {stage}, and is now {now}" in str(error.value)
    assert str(folder.config) in str(error.value)
    assert "start a new run" in str(error.value)
    check_settled(folder, before)


def test_every_setting_that_differs_is_named_and_none_else(folder: RunFolder, changed: Changed) -> None:
    begun(folder, changed(), "data", "baseline", "trials")
    with pytest.raises(UserError) as error:
        check_settled(folder, changed(data__n_train=50, train__lr=1e-5, mask__ratio=0.5, verdict__seeds=3))
    assert [part.split(" was ")[0].split()[-1] for part in str(error.value).split(";")] == [
        "data.n_train",
        "mask.ratio",
        "train.lr",
    ]


@pytest.mark.parametrize("path", FREE)
def test_what_results_do_not_depend_on_may_change_at_any_time(folder: RunFolder, changed: Changed, path: str) -> None:
    scaling = {"fft.scaling": {"workers": 1}}
    before = changed(**scaling)
    begun(folder, before, "data", "baseline", "trials", "verdict", "methods", "scores", "training", "experiments")
    values = {
        "run.name": "another",
        "tracking": {"wandb": {"project": "masks"}},
        "search.budget": {"hours": 1.0},
        "scaling.cluster_grows_to": {"CPU": 64},
        "fft.scaling.cluster_grows_to": {"CPU": 64},
        "search.storage": "postgresql://db/masks",
        "train.packing": True,
        "fft.train.packing": True,
    }
    tree = nested({**flatten(before.model_dump(mode="json")), path: values.get(path, 7)})
    settled = check_settled(folder, parse_config(tree))
    assert settled.differences() == []


def test_a_section_that_was_null_differs_once(folder: RunFolder, changed: Changed) -> None:
    begun(folder, changed(), "data", "baseline")
    with pytest.raises(UserError, match=r"settings: fft\.scaling was null for the baseline, and is now \{'workers': 2"):
        check_settled(folder, changed(**{"fft.scaling": {"workers": 2}}))


def test_trials_may_be_raised_but_none_is_taken_back(folder: RunFolder, changed: Changed) -> None:
    begun(folder, changed(search__trials=9), "data", "baseline", "trials")
    for name in "abc":
        trial(folder, name)
    check_settled(folder, changed(search__trials=50))
    check_settled(folder, changed(search__trials=3))
    with pytest.raises(UserError, match=r"search\.trials is 2, and 3 have begun in .*Set search\.trials to 3 or more"):
        check_settled(folder, changed(search__trials=2))


def test_a_run_of_an_earlier_version_records_what_it_has(folder: RunFolder, changed: Changed) -> None:
    folder.settled.unlink()
    changed().save(folder.config)
    folder.baseline.write_text("{}")
    new = changed(train__lr=1e-5, verdict__seeds=2)
    with pytest.raises(UserError, match=r"train\.lr was 0\.003 for the trials, and is now 1e-05"):
        check_settled(folder, new)
    assert not folder.settled.exists()
    settled = check_settled(folder, changed(verdict__seeds=2))
    assert settled.recorded.keys() == {"data", "baseline", "trials"}
    settled.begin("verdict")
    kept = json.loads(folder.settled.read_text())
    assert kept["schema"] == 1
    assert kept["stages"]["trials"]["train.lr"] == 3e-3
    assert kept["stages"]["verdict"]["verdict.seeds"] == 2


def test_a_setting_that_is_newer_than_the_record_was_at_its_default(folder: RunFolder, changed: Changed) -> None:
    begun(folder, changed(), "data", "baseline", "trials")
    kept = json.loads(folder.settled.read_text())
    del kept["stages"]["trials"]["mask.scope"]
    folder.settled.write_text(json.dumps(kept))
    check_settled(folder, changed())
    with pytest.raises(UserError, match=r"mask\.scope was matrix for the trials, and is now layer"):
        check_settled(folder, changed(mask__scope="layer"))


def test_data_that_was_never_prepared_may_be_another(folder: RunFolder, changed: Changed) -> None:
    begun(folder, changed(), "data")
    folder.data.rmdir()
    check_settled(folder, changed(data__n_train=50)).begin("data")
    assert json.loads(folder.settled.read_text())["stages"]["data"]["data.n_train"] == 50


def test_data_that_is_gone_is_prepared_as_it_was_where_more_was_made_of_it(folder: RunFolder, changed: Changed) -> None:
    begun(folder, changed(), "data", "baseline")
    folder.data.rmdir()
    with pytest.raises(UserError, match=r"data\.n_train was 60 for the data, and is now 50"):
        check_settled(folder, changed(data__n_train=50))


def test_what_was_recorded_and_is_free_by_now_is_free(folder: RunFolder, changed: Changed) -> None:
    begun(folder, changed(), "data", "baseline", "trials")
    kept = json.loads(folder.settled.read_text())
    kept["stages"]["trials"]["search.keep"] = 3
    folder.settled.write_text(json.dumps(kept))
    check_settled(folder, changed())


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '{"schema": 1, "stages": 3}'])
def test_a_broken_record_is_named(folder: RunFolder, changed: Changed, text: str) -> None:
    folder.settled.write_text(text)
    with pytest.raises(UserError, match=r"settled\.json, which says what the run was made with, cannot be read"):
        check_settled(folder, changed())


def test_a_record_of_another_version_is_refused(folder: RunFolder, changed: Changed) -> None:
    folder.settled.write_text('{"schema": 2, "stages": {}}')
    with pytest.raises(UserError, match="has schema 2, and this version of mft_ray reads 1"):
        check_settled(folder, changed())


@pytest.mark.parametrize("command", [search, compare])
def test_an_edited_config_is_not_believed(
    command: Callable[[Config | None, str | None], Any], folder: RunFolder, changed: Changed
) -> None:
    begun(folder, changed(), "data", "baseline")
    edited = changed(fft__train={**changed().fft.train.model_dump(mode="json"), "lr": 1e-5})
    edited.save(folder.config)
    with pytest.raises(UserError, match=r"fft\.train\.lr was 0\.003 for the baseline, and is now 1e-05"):
        command(None, str(folder.root))
    with pytest.raises(UserError, match=r"fft\.train\.lr was 0\.003"):
        command(edited, str(folder.root))


def test_compared_methods_are_settled_by_row(folder: RunFolder, changed: Changed) -> None:
    rows: dict[str, Any] = {"mft": {"train": {"lr": 1e-3}}, "lora": {}}
    begun(folder, changed(**{"compare.methods": rows}), "data", "baseline", "methods")
    other = {**rows, "mft": {"train": {"lr": 1e-2}}, "l1_mask": {}}
    with pytest.raises(UserError) as error:
        check_settled(folder, changed(**{"compare.methods": other}))
    said = str(error.value)
    assert (
        "compare.methods.mft was {'train': {'lr': 0.001}} for the methods, and is now {'train': {'lr': 0.01}}" in said
    )
    assert "compare.methods.l1_mask was left out for the methods, and is now {}" in said
    assert "lora" not in said
    check_settled(folder, changed(**{"compare.methods": rows, "verdict.seeds": 4}))


def test_edited_experiments_are_refused_by_name(folder: RunFolder, changed: Changed) -> None:
    config = changed(**{"experiment.seeds": 2, "experiment.ratios": [0.1]})
    begun(folder, config, "experiments")
    (folder.root / "experiments.json").write_text('{"names": ["ratio"]}')
    (folder.root / "runs" / "ratio" / "seed-1").mkdir(parents=True)
    changed(**{"experiment.seeds": 2, "experiment.ratios": [0.2], "train.lr": 1e-5}).save(folder.config)
    with pytest.raises(UserError) as error:
        run_experiments(["ratio"], None, str(folder.root))
    assert "experiment.ratios was [0.1] for the experiments, and is now [0.2]; train.lr was 0.003" in str(error.value)
    with pytest.raises(UserError, match=r"experiment\.seeds is 1, and 2 have begun"):
        run_experiments(["ratio"], changed(**{"experiment.seeds": 1, "experiment.ratios": [0.1]}), str(folder.root))
    check_settled(folder, changed(**{"experiment.seeds": 5, "experiment.ratios": [0.1]}))  # more seeds add to it


class TestOneTraining:
    """`mft-ray train --out X` on an X that is there."""

    @pytest.fixture
    def out(self, folder: RunFolder) -> RunFolder:
        folder.trials.rmdir()
        return folder

    def begun(self, out: RunFolder, config: Config, method: str = "fft") -> str:
        from mft_ray.runs.once.train import _tree

        settled = Settled(out, _tree(method, config.seeded()))
        settled.begin("data")
        settled.begin("training")
        config.seeded().save(out.config)
        return out.config.read_text()

    def finish(self, out: RunFolder) -> None:
        history = [{"step": step, "score": 0.25 * step / 20, "standard_error": 0.1} for step in (0, 20)]
        more = {"tokens": 1, "seconds": 1.0, "loss": 0.5, "ratio": 0.0, "eligible": True}
        outcome = {"stopped_reason": "completed", "history": [{**row, **more} for row in history]}
        (out.root / "outcome.json").write_text(json.dumps({**outcome, "best": 1, "score": 0.25}))
        (out.root / "best").mkdir()

    def test_a_finished_one_is_said_to_be_done_and_stays(
        self, out: RunFolder, changed: Changed, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = changed()
        before = self.begun(out, config)
        self.finish(out)
        files = {path: path.stat().st_mtime_ns for path in out.root.rglob("*")}
        train_once("fft", changed(train__lr=1e-5, run__name="other", train__eval_batch_size=3), str(out.root))
        said = capsys.readouterr().out
        assert f"{out.root} is done already, by fft with these settings: nothing is trained" in said
        assert f"best at step 20: 25.00 % on validation\n{out.root / 'best'}" in said
        assert {path: path.stat().st_mtime_ns for path in out.root.rglob("*")} == files
        assert out.config.read_text() == before

    @pytest.mark.parametrize("finished", [True, False])
    def test_other_settings_are_refused(self, out: RunFolder, changed: Changed, finished: bool) -> None:
        before = self.begun(out, changed())
        if finished:
            self.finish(out)
        other = changed(**{"fft.train.lr": 1e-5, "run.seed": 3})
        with pytest.raises(UserError) as error:
            train_once("fft", other, str(out.root))
        assert "fft.train.lr was 0.003 for the training, and is now 1e-05" in str(error.value)
        assert "data.seed was 0 for the data, and is now 3" in str(error.value)
        assert "Give another --out" in str(error.value)
        assert out.config.read_text() == before

    def test_another_method_is_refused(self, out: RunFolder, changed: Changed, tmp_path: Path) -> None:
        before = self.begun(out, changed())
        self.finish(out)
        with pytest.raises(UserError, match=r"settings: .*method was fft for the training, and is now mft") as error:
            train_once("mft", changed(), str(out.root))
        assert "mask" not in str(error.value)
        assert out.config.read_text() == before

    def test_the_folder_of_a_search_is_refused(self, out: RunFolder, changed: Changed) -> None:
        begun(out, changed(), "data", "baseline")
        out.baseline.write_text("{}")
        before = out.config.read_text()
        with pytest.raises(UserError, match="is the folder of a search or a comparison"):
            train_once("fft", changed(), str(out.root))
        assert out.config.read_text() == before

    def test_one_of_an_earlier_version_is_known_by_its_config(self, out: RunFolder, changed: Changed) -> None:
        self.begun(out, changed())
        out.settled.unlink()
        out.data.rmdir()
        self.finish(out)
        with pytest.raises(UserError, match=r"fft\.train\.lr was 0\.003 for the training, and is now 1e-05"):
            train_once("fft", changed(**{"fft.train.lr": 1e-5}), str(out.root))
        with pytest.raises(UserError, match="holds what another method, or other settings, made"):
            train_once("lora", changed(), str(out.root))
        train_once("fft", changed(), str(out.root))


def test_set_with_resume_is_over_the_runs_own_config(
    folder: RunFolder, changed: Changed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mft_ray.cli.main import main

    begun(folder, changed(), "data")
    written = folder.config.read_text()
    assert main(["tune", "--resume", str(folder.root), "--set", "data.n_train=50"]) == 2
    assert "data.n_train was 60 for the data, and is now 50" in capsys.readouterr().err
    assert folder.config.read_text() == written
    assert yaml.safe_load(written)["data"]["n_train"] == 60
