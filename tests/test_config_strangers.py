"""Configurations as strangers write them: a Config that means what it says, or a paragraph, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from mft_ray.config import Config, load_config, parse_config
from mft_ray.errors import UserError

MODEL = "model: {path: /models/mine}\n"
NAMES = ["../../x", "a/b", "/x", "..", ".", "...", "", " ", "a\\b", "~x", " x", "x ", "x" * 300, "a\nb", "é" * 60]


def told(file: Path, text: str | bytes, *sets: str) -> str:
    """What a user is told of a file; always one paragraph."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        load_config(file, sets)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


@pytest.mark.parametrize(
    ("text", "key", "first", "second"),
    [
        (f"{MODEL}train: {{steps: 3}}\nrun: {{}}\ntrain: {{lr: 1}}\n", "train", 2, 4),
        (f"{MODEL}train:\n  lr: 1e-3\n  steps: 3\n  lr: 2e-3\n", "lr", 3, 5),
        (f'{MODEL}fft:\n  train:\n    lr: 1\n    "lr": 2\n', "lr", 4, 5),
        (f"{MODEL}search:\n  extra_points:\n  - lr: 1\n    lr: 2\n", "lr", 4, 5),
        ("model:\n  architecture:\n    model_type: llama\n    model_type: gpt2\n", "model_type", 3, 4),
        (f"{MODEL}compare:\n  methods:\n    mft: {{}}\n    mft: {{train: {{lr: 1}}}}\n", "mft", 4, 5),
    ],
)
def test_a_key_that_is_there_twice_is_told_with_both_lines(file: Path, text: str, key: str, first: int, second: int):
    found = told(file, text)
    assert f"line {second}, " in found
    assert f"the key {key} is there twice, first in line {first}" in found


def test_a_key_twice_within_an_override(file: Path) -> None:
    assert "the key lr is there twice" in told(file, MODEL, "train={lr: 1, lr: 2}")
    assert "the key lr is there twice" in told(file, MODEL, "fft.train={lr: 1, steps: 2, lr: 2}")


def test_anchors_are_read_and_overridden_by_merging(file: Path) -> None:
    file.write_text(f"{MODEL}train: &t {{lr: 1e-3, seed: 3}}\nfft:\n  train:\n    <<: *t\n    seed: 4\n")
    config = load_config(file)
    assert (config.fft.train.lr, config.fft.train.seed, config.train.seed) == (1e-3, 4, 3)


def test_a_text_of_aliases_to_aliases_is_refused_at_once(file: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "more than 100,000 values" in told(file, "\n".join(lines))
    assert "a value that is within itself" in told(file, f"{MODEL}run: &r {{name: *r}}")
    assert "nested too deep" in told(file, "[" * 20_000)
    assert "50 deep" in told(file, f"a: {'[' * 60}{']' * 60}")


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999", "'1e999'", "inf", "nan", "'NaN'"])
@pytest.mark.parametrize(
    "place", ["train.lr", "mask.threshold", "mask.init_scale", "scaling.cpus_per_worker", "search.budget.hours"]
)
def test_numbers_are_finite_wherever_a_number_is_wanted(file: Path, place: str, value: str) -> None:
    assert place in told(file, MODEL, f"{place}={value}")


@pytest.mark.parametrize(
    "override",
    [
        "search.extra_points=[{lr: .inf}]",
        "train.betas=[.nan, 0.9]",
        "search.space.lr={low: 1e-5, high: .inf}",
        "compare.methods={mft: {train: {lr: .nan}}}",
        "experiment.domains={one: {data: {seed: .inf}}}",
        "experiment.ratios=[.nan]",
        "scaling.cluster_grows_to={CPU: .inf}",
        "mask.ratio_mlp=.nan",
    ],
)
def test_numbers_are_finite_within_lists_and_free_sections(file: Path, override: str) -> None:
    assert "a finite number is wanted" in told(file, MODEL, override)


def test_numbers_of_an_architecture_are_finite(file: Path) -> None:
    text = "model: {architecture: {model_type: llama, rope_parameters: {factor: .inf}}}"
    assert "model.architecture.rope_parameters.factor: got inf" in told(file, text)


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("model.path=''", "model.path"),
        ("model.path='  '", "model.path"),
        ("model.pretrained=''", "model.pretrained"),
        ("data.train=''", "data.train"),
        ("data.test=''", "data.test"),
        ("data.mixture=[{path: ''}]", "data.mixture.0.path"),
        ("run.dir=''", "run.dir"),
        ("evaluation={tasks: [gsm8k], task_data: {gsm8k: ''}}", "evaluation.task_data.gsm8k"),
        ("evaluation.tasks=[gsm8k, '']", "evaluation.tasks.1"),
        ("evaluation.other_tasks=['']", "evaluation.other_tasks.0"),
        ("data.chat_template=''", "data.chat_template"),
    ],
)
def test_empty_text_is_no_path(file: Path, override: str, place: str) -> None:
    assert f"{place} is empty text" in told(file, MODEL, override)


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out_of_their_folder_are_refused_by_name(name: str) -> None:
    tree = {"model": {"path": "/a"}}
    for more, place in (
        ({"run": {"name": name}}, "run.name"),
        ({"compare": {"methods": {name: {"method": "mft"}}}}, "compare.methods"),
        ({"compare": {"methods": {"mft": {}, name: {"method": "mft"}}}}, "compare.methods"),
        ({"experiment": {"domains": {name: {}}}}, "experiment.domains"),
    ):
        with pytest.raises(UserError, match="cannot be a folder's name") as caught:
            parse_config({**tree, **more})
        assert place in str(caught.value)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["a", "lr 1e-3, ratio 0.5", "größer", "a.b", "-x", "x" * 100, "ratio=0.1+2"])
def test_other_names_are_free(name: str) -> None:
    config = parse_config({"model": {"path": "/a"}, "run": {"name": name}, "experiment": {"domains": {name: {}}}})
    assert config.run.name == name


def test_names_whose_files_would_be_one_are_refused() -> None:
    for section in ({"compare": {"methods": {"a b": {"method": "mft"}, "a-b": {"method": "mft"}}}},):
        with pytest.raises(UserError, match="'a b' and 'a-b' would have the same files"):
            parse_config({"model": {"path": "/a"}, **section})
    with pytest.raises(UserError, match="the domains 'a,b' and 'a;b' would have the same files"):
        parse_config({"model": {"path": "/a"}, "experiment": {"domains": {"a,b": {}, "a;b": {}}}})


@pytest.mark.parametrize(
    "override",
    [
        "search.trials=true",
        "search.trials=yes",
        "train.lr=on",
        "train.betas=[0.9, true]",
        "train.patience=false",
        "mask.ratio=false",
        "scaling.cluster_grows_to={CPU: yes}",
        "search.space.rank=[true]",
        "verdict.seeds=true",
    ],
)
def test_true_is_no_number(file: Path, override: str) -> None:
    assert override.split("=")[0] in told(file, MODEL, override)


def test_text_stays_as_written_or_is_told(file: Path) -> None:
    file.write_text(f"{MODEL}run: {{name: 2024-01-17}}\n")
    assert load_config(file).run.name == "2024-01-17"
    assert load_config(file, ["run.name=5"]).run.name == "5"
    assert "got the number 1000.0, and text is wanted; put it in quotes" in told(file, MODEL, "run.name=1e3")
    assert load_config(file, ["run.name='1e3'"]).run.name == "1e3"


@pytest.mark.parametrize("name", ["1e3", "0x10", "2024-01-17", "1_000", "yes", "null", "~", "2:4", "0b1", "+1e-3", "="])
def test_what_is_saved_is_read_as_the_text_that_it_was(file: Path, name: str) -> None:
    config = parse_config({"model": {"path": "/a"}, "data": {"train": name}})
    config.save(file)
    assert load_config(file).data.train == name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n- b\n", "must be a mapping of settings, got list"),
        (f"{MODEL}---\n{MODEL}", "another document"),
        (f"{MODEL}? [a]\n: b\n", "a key that is not text"),
        (f"{MODEL}data:\n\ttrain: x\n", "line 3, column 1"),
        ("model: {architecture: {1: 2}}", "model.architecture.1: got 1; Keys should be strings"),
        (f"{MODEL}experiment: {{domains: !!set {{a, b}}}}", "experiment.domains: got "),
        (f"{MODEL}run: {{name: !!binary aGk=}}", "run.name: got b'hi'"),
        (f'{MODEL}run: {{dir: "a\\0b"}}', "run.dir: got 'a\\x00b'; a NUL character"),
        (f'{MODEL}run: {{name: "\\ud800"}}', "not Unicode"),
        (f"{MODEL}train: {{seed: 0x{'f' * 5000}}}", "train.seed: got a number of 20000 bits"),
        (f"{MODEL}train: {{seed: {'9' * 5000}}}", "a value cannot be read"),
        (f"{MODEL}run: {{seed: -1}}", "a seed is a whole number from 0"),
        (f"{MODEL}run: {{seed: 2147483000}}\ntrain: {{seed: 1000}}", "train.seed is 1000 with run.seed 2147483000"),
        (f"{MODEL}train: {{seed: 4294967296}}", "train.seed is 4294967296"),
        (f"{MODEL}compare: {{methods: [[1]]}}", "compare.methods"),
        (f"{MODEL}compare: {{methods: {{mft: {{method: [1]}}}}}}", "is of method [1]"),
        (f"{MODEL}compare: {{methods: {{mft: {{train: 5}}}}}}", "mft changes train to 5; a mapping"),
        (f"{MODEL}experiment: {{domains: {{a: {{data: 5}}}}}}", "a changes data to 5; a mapping"),
        (f"{MODEL}experiment: {{domains: {{a: {{train: {{}}}}}}}}", "a domain may change data and evaluation"),
        (
            f"{MODEL}experiment: {{domains: {{a: {{evaluation: {{tasks: gsm8k}}}}}}}}",
            "experiment.domains.a.evaluation has a bad",
        ),
        (f"{MODEL}study: {{seeds: 2}}", "an unknown key study (it is called experiment now)"),
        ("model: {path: /a, before: /b}", "an unknown key model.before (it is called model.pretrained now)"),
        (b"\xff\xfem\x00", "is not text"),
    ],
)
def test_what_no_configuration_is(file: Path, text: str | bytes, says: str) -> None:
    assert says in told(file, text)


def test_a_byte_order_mark_is_no_text(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + MODEL.encode())
    assert load_config(file).model.path == "/models/mine"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "..", "a/b", "\0", "1e999", "mft", "auto", "all", "0-1", "2:4", "normal", -1, 0, 1, 2**70]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=6,
)


def paths(section: Any, above: str = "") -> list[str]:
    """All settings there are, by their paths."""
    if isinstance(section, type) and issubclass(section, BaseModel):
        fields = {name: field.annotation for name, field in section.model_fields.items()}
    else:
        fields = dict.fromkeys(getattr(section, "__dataclass_fields__", {}))
    found = []
    for name, annotation in fields.items():
        found.append(above + name)
        for member in (annotation, *get_args(annotation)):
            if isinstance(member, type):
                found += paths(member, f"{above}{name}.")
    return found


PATHS = paths(Config)
CHANGES = st.lists(st.tuples(st.sampled_from(PATHS), JSON), min_size=1, max_size=4)


def outcome(read: Callable[[], Config]) -> Config | str:
    """A configuration, or the paragraph that a user is told."""
    try:
        return read()
    except UserError as error:
        return str(error)


def paragraph(found: Config | str) -> bool:
    return isinstance(found, Config) or 0 < len(found.strip()) < 10_000


def changed(changes: list[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {"model": {"path": "/a"}}
    for path, value in changes:
        *parents, leaf = path.split(".")
        section = tree
        for parent in parents:
            if not isinstance(section.get(parent), dict):
                section[parent] = {}
            section = section[parent]
        section[leaf] = value
    return tree


def test_all_settings_are_tried() -> None:
    assert len(PATHS) > 120
    assert {"mask.ratio", "fft.train.lr", "search.space.lr.low", "data.train", "compare.methods"} <= set(PATHS)


@given(CHANGES)
@example([("train.lr", float("inf"))])
@example([("search.method", []), ("search.space.ratio", None)])
@example([("compare.methods", {"mft": {"method": {}}})])
@example([("search.space.paths", [None])])
@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_values_of_settings_make_a_configuration_or_a_paragraph(file: Path, changes: list[tuple[str, Any]]) -> None:
    config = outcome(lambda: parse_config(changed(changes)))
    assert paragraph(config)
    if isinstance(config, Config):
        config.seeded()
        config.save(file)
        assert load_config(file) == config


@given(JSON)
@settings(deadline=None, max_examples=100)
def test_any_tree_makes_a_configuration_or_a_paragraph(tree: Any) -> None:
    assert paragraph(outcome(lambda: parse_config(tree if isinstance(tree, dict) else {"model": tree})))


@given(
    st.text(st.sampled_from("model: path-[]{},&*a!'\"\n\t#|>%@`0123.e_<=?~"), max_size=60)
    | JSON.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True))
    | JSON.map(json.dumps)
    | st.binary(max_size=40)
)
@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_makes_a_configuration_or_a_paragraph(file: Path, text: str | bytes) -> None:
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    assert paragraph(outcome(lambda: load_config(file)))
    value = text if isinstance(text, str) else text.decode("latin-1")
    file.write_text(MODEL)
    for override in (f"train={value}", value, f"compare.methods={value}"):
        assert paragraph(outcome(partial(load_config, file, [override])))
