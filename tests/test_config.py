from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mft_ray.config import Config, LearningRateRange, MaskingRatioRange, load_config, parse_config
from mft_ray.errors import UserError

MINIMAL = {"model": {"path": "/models/mine"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("model: {path: /models/mine}\n")
    return path


def nested(path: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} of a.b, with a model beside it."""
    *parents, leaf = path.split(".")
    tree: dict[str, Any] = {leaf: value}
    for parent in reversed(parents):
        tree = {parent: tree}
    return {"model": {**MINIMAL["model"], **tree.pop("model", {})}, **tree}


def message(tree: dict[str, Any]) -> str:
    """What a user is told of a tree; always one paragraph."""
    with pytest.raises(UserError) as caught:
        parse_config(tree)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("trian", "train"),
        ("Model", "model"),
        ("run.nam", "name"),
        ("model.pth", "path"),
        ("data.Train", "train"),
        ("mask.sparsity", "ratio"),
        ("train.learning_rate", "lr"),
        ("fft.steps", "train"),
        ("fft.train.step", "steps"),
        ("fft.scaling.worker", "workers"),
        ("search.stop.below", "below_fft"),
        ("search.space.ratios", "ratio"),
        ("search.space.ratio.lo", "low"),
        ("search.space.lr.lgo", "log"),
        ("scaling.gpus", "gpus_per_worker"),
    ],
)
def test_an_unknown_key_is_named_with_those_that_there_are(path: str, known: str) -> None:
    found = message(nested(path, 1))
    assert f"an unknown key {path} (known here: " in found
    assert known in found.split("known here: ")[1].split(")")[0].split(", ")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("mask.ratio", 1.0, "masking ratio 1.0 is outside [0, 1)"),
        ("mask.ratio", -0.1, "masking ratio -0.1 is outside [0, 1)"),
        ("mask.ratio", float("nan"), "mask.ratio: got nan; a finite number is wanted"),
        ("mask.ratio", "much", "mask.ratio: got 'much'"),
        ("search.space.ratio", [0.1, 1.0], "search.space.ratio.1: got 1.0; Input should be less than 1"),
        ("search.space.ratio", [-0.5], "search.space.ratio.0: got -0.5"),
        ("search.space.ratio.high", 1.5, "search.space.ratio.high: got 1.5; Input should be less than 1"),
        ("search.space.ratio.low", -1, "search.space.ratio.low: got -1"),
        ("search.space.ratio", {"low": 0.4, "high": 0.2}, "needs low <= high (and low > 0 with log), got 0.4 and 0.2"),
        ("search.space.lr", {"low": 0, "high": 1}, "search.space.lr.low: got 0; Input should be greater than 0"),
        ("search.space.lr", [1e-3, 0], "search.space.lr.1: got 0"),
        ("search.space.target", ["head"], "search.space.target.0: got 'head'"),
        ("mask.layers", "7-4", "'7-4' ends before it starts"),
        ("mask.init", "zeros", "mask.init: got 'zeros'"),
        ("train.steps", -1, "train.steps: got -1"),
        ("train.steps", 1.5, "train.steps: got 1.5"),
        ("train.epochs", 0, "train.epochs: got 0"),
        ("fft.train", {"steps": 10, "epochs": 2}, "steps 10 and epochs 2 are both given; leave one out (epochs: null"),
        ("scaling.zero_stage", 4, "scaling.zero_stage: got 4"),
        ("scaling.cluster_grows_to", {"CPU": "many"}, "scaling.cluster_grows_to.CPU: got 'many'"),
        ("evaluation.metric", "f1", "evaluation.metric: got 'f1'"),
        ("data", [1], "a bad value for data: got [1]"),
        ("model.architecture", {"model_type": "llama"}, "give exactly one of model.path and model.architecture"),
    ],
)
def test_a_value_that_is_not_allowed_is_told(path: str, value: Any, says: str) -> None:
    assert says in message(nested(path, value))


def test_every_problem_is_told_and_none_twice() -> None:
    found = message({**MINIMAL, "train": {"lr": -1, "foo": 1}, "search": {"space": {"ratio": [2.0]}}})
    assert found.count("; a") == 2
    for part in ("train.lr: got -1", "unknown key train.foo", "search.space.ratio.0: got 2.0"):
        assert found.count(part) == 1


def test_the_model_must_be_given() -> None:
    assert "no model, which must be given" in message({})
    assert "give exactly one of" in message({"model": {}})


def test_differences_leave_the_other_defaults_alone() -> None:
    # A section given in part keeps the defaults of that place.
    config = parse_config(nested("fft.train.lr", 1e-3))
    assert config.fft.train == parse_config(MINIMAL).fft.train.model_copy(update={"lr": 1e-3})
    assert config.fft.train.patience is not None
    config = parse_config(nested("search.space.lr", {"high": 1e-3}))
    assert config.search.space.lr == LearningRateRange(low=2e-5, high=1e-3, log=True)
    config = parse_config(nested("search.space.ratio", {"high": 0.9}))
    assert config.search.space.ratio == MaskingRatioRange(low=0.02, high=0.9)


def test_epochs_become_steps_once_the_data_is_known(file: Path) -> None:
    sets = ["train.epochs=2", "train.batch_size=128", "fft.train.epochs=0.5"]
    config = load_config(file, sets)
    config.save(file)
    assert load_config(file) == config  # saved with the default of steps, which nobody asked for
    assert config.seeded() == config
    known = config.train.in_steps(60_000)
    assert (known.steps, known.epochs) == (938, None)
    assert config.fft.train.in_steps(64).steps == 1
    assert load_config(file, ["train.epochs=null", "train.steps=7"]).train.in_steps(60_000).steps == 7


def test_a_single_layer_may_be_written_as_a_number() -> None:
    assert parse_config(nested("mask.layers", 4)).mask.layers == "4"
    assert parse_config(nested("search.space.layers", [4, "5-6"])).search.space.layers == ["4", "5-6"]


def test_a_pattern_is_not_a_number_in_base_60(file: Path) -> None:
    file.write_text("model: {path: /a}\nmask: {pattern: 2:4, ratio: 0.5}\n")
    config = load_config(file)
    assert config.mask.pattern == "2:4"
    config.save(file)
    assert load_config(file) == config
    assert load_config(file, ["mask.pattern=1:2"]).mask.pattern == "1:2"


def test_overrides_change_add_and_win(file: Path) -> None:
    file.write_text("model: {path: /a}\ntrain: {steps: 5}\nsearch:\n")
    sets = ["train.steps=7", "model.path=/b", "search.trials=4", "search.space.ratio=[0.1, 0.2]", "train.patience=null"]
    config = load_config(file, [*sets, "train.steps=8"])
    assert (config.train.steps, config.model.path, config.search.trials) == (8, "/b", 4)
    assert config.search.space.ratio == [0.1, 0.2]
    assert config.train.patience is None


def test_an_override_may_hold_an_equals_sign_and_reach_into_a_section_left_null(file: Path) -> None:
    config = load_config(file, ["model.path=/a=b", "fft.scaling=null", "fft.scaling.workers=2"])
    assert config.model.path == "/a=b"
    assert config.fft.scaling is not None
    assert config.fft.scaling.workers == 2


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("search.trials", "is not of the form path=value"),
        ("=4", "is not of the form path=value"),
        ("model.path.x=1", "path is a value, not a section"),
        ("search.trials=[1", "the value is not valid YAML: line 1"),
        ("search.trails=4", "an unknown key search.trails"),
        ("search.trials=many", "search.trials: got 'many'"),
        ("mask.ratio=1.0", "masking ratio 1.0"),
    ],
)
def test_a_bad_override_is_told(file: Path, override: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(file, [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "1.0e-3", "+1e-3", "0.001", "10e-4"])
def test_numbers_are_read_as_people_write_them(file: Path, text: str) -> None:
    # Typed fields would also parse text; free-form ones would keep it.
    file.write_text(
        f"model: {{architecture: {{model_type: llama, eps: {text}}}}}\nsearch: {{extra_points: [lr: {text}]}}"
    )
    config = load_config(file, [f"train.lr={text}"])
    assert config.train.lr == 1e-3
    assert config.search.extra_points == [{"lr": 1e-3}]
    assert config.model.architecture is not None
    assert config.model.architecture["eps"] == 1e-3


@pytest.mark.parametrize("text", ["4-7", "1e", "e3", "1-e3", "v1e3"])
def test_text_that_only_resembles_a_number_stays_text(file: Path, text: str) -> None:
    assert load_config(file, [f"run.name={text}"]).run.name == text


def test_our_yaml_does_not_change_everyones() -> None:
    assert yaml.safe_load("1e-3") == "1e-3"


def test_seeded_adds_the_runs_seed_to_every_other_once() -> None:
    tree = {
        **MINIMAL,
        "run": {"seed": 10},
        "data": {"seed": 1},
        "train": {"seed": 2},
        "fft": {"train": {"seed": 3}},
        "search": {"seed": 4},
    }
    config = parse_config(tree)
    before = config.model_copy(deep=True)
    seeded = config.seeded()
    assert (seeded.data.seed, seeded.train.seed, seeded.fft.train.seed, seeded.search.seed) == (11, 12, 13, 14)
    assert seeded.run.seed == 0
    assert seeded.seeded() == seeded
    assert config == before


def test_no_seed_is_left_out_of_seeded() -> None:
    """A seed that a later setting brings must be added there too."""

    def seeds(tree: Any, path: str = "") -> dict[str, int]:
        if not isinstance(tree, dict):
            return {}
        found = {f"{path}.{key}": value for key, value in tree.items() if key == "seed"}
        return found | {
            name: seed for key, value in tree.items() for name, seed in seeds(value, f"{path}.{key}").items()
        }

    before = seeds(parse_config({**MINIMAL, "run": {"seed": 5}}).model_dump())
    after = seeds(parse_config({**MINIMAL, "run": {"seed": 5}}).seeded().model_dump())
    assert len(before) > 3
    assert after == {name: 0 if name == ".run.seed" else seed + 5 for name, seed in before.items()}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "run": st.fixed_dictionaries({"name": st.text("aé:#'\" -.1e", max_size=8).map(lambda name: f"n{name}n")}),
            "mask": st.fixed_dictionaries({"ratio": st.floats(0, 1, exclude_max=True), "layers": st.just("4-7")}),
            "train": st.fixed_dictionaries({"lr": st.floats(1e-12, 1), "steps": st.integers(1, 10**9)}),
            "scaling": st.fixed_dictionaries({"cluster_grows_to": st.just({"CPU": 64, "GPU": 8})}),
            "search": st.builds(
                lambda ratio, layers: {"space": {"ratio": ratio, "layers": layers}, "extra_points": [{"lr": 1e-5}]},
                st.sampled_from([[0.1, 0.0], {"low": 1e-7, "high": 0.5, "log": True}]),
                st.sampled_from(["auto", ["0-3", "4"], ["5"]]),
            ),
        },
    )
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_what_is_saved_loads_as_it_was(file: Path, tree: dict[str, Any]) -> None:
    config = parse_config({**MINIMAL, **tree})
    config.save(file)
    assert load_config(file) == config
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_a_saved_config_is_complete(file: Path) -> None:
    config = parse_config(MINIMAL)
    config.save(file)
    assert yaml.safe_load(file.read_text()).keys() == Config.model_fields.keys()


def test_shipped_search_spaces_are_valid() -> None:
    files = sorted((Path(__file__).parents[1] / "tune_spaces").rglob("*.yaml"))
    assert files
    for path in files:
        load_config(path)


def test_assigning_a_bad_value_is_refused() -> None:
    config = parse_config(MINIMAL)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        config.train.steps = -1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"model: {path: /a", "is not valid YAML: line 1, column 17: expected"),
        (b"model:\n\tpath: /a\n", "is not valid YAML: line 2, column 1"),
        (b"- 1\n", "must be a mapping of settings, got list"),
        (b"just text", "must be a mapping of settings, got str"),
        (b"", "no model, which must be given"),
        (b"# nothing\n", "no model, which must be given"),
        (b"run: {name: \xff\xfe}", "is not text. Give --config a YAML file in UTF-8"),
        (b"1: 2\n", "1: got 1; Keys should be strings"),
        (b"a: !!python/object:os.system {}\n", "is not valid YAML"),
    ],
)
def test_a_broken_file_is_told(file: Path, content: bytes, says: str) -> None:
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read the config .*none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        load_config(tmp_path)


def test_a_templates_variables_and_day_are_settings(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: m}\ndata: {template_options: {enable_thinking: false}, template_date: 2026-01-31}\n")
    data = load_config(file).data
    assert (data.template_options, data.template_date) == ({"enable_thinking": False}, "2026-01-31")
    load_config(file).save(tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml").data == data
    assert (data.system, data.too_long) == ("auto", "leave_out")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.template_options={messages: 1}", "'messages' is no variable that may be set"),
        ("data.template_options={a b: 1}", "'a b' is no variable that may be set"),
        ("data.template_date=31.1.2026", "a day is written as 2026-01-31"),
        ("data.template_date='2026-02-30'", "a day is written as 2026-01-31"),
        ("data.system=keep", "data.system"),
        ("data.too_long=truncate", "data.too_long"),
    ],
)
def test_what_a_template_cannot_be_given_is_refused(tmp_path: Path, override: str, says: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: m}\n")
    with pytest.raises(UserError, match=says):
        load_config(file, [override])


@pytest.mark.parametrize(
    ("scaling", "says"),
    [
        ({"workers": 2, "gpus_per_worker": 0.5}, "two workers of a run could be put on one GPU"),
        ({"gpus_per_worker": 1.5}, "above 1 it must be a whole number"),
        ({"offload": "cpu"}, "zero_stage 0, at which DeepSpeed keeps the optimizer"),
    ],
)
def test_gpus_that_no_group_can_have_are_refused(scaling: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_config({"model": {"path": "m"}, "scaling": scaling})
    for fine in ({"workers": 2, "gpus_per_worker": 2}, {"gpus_per_worker": 0.25}, {"workers": 4}):
        parse_config({"model": {"path": "m"}, "scaling": fine})
