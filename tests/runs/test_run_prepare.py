"""Bad input is refused in seconds, in one paragraph, and nothing is left on disk."""

from __future__ import annotations

import json
import shutil
import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from mft_ray.config import Config, DataConfig, parse_config
from mft_ray.data import arithmetic
from mft_ray.data.store import SPLITS, open_split, prepare
from mft_ray.data.text.ends import stop_tokens
from mft_ray.errors import UserError
from mft_ray.models.export import save_model
from mft_ray.models.loading import load_model, load_tokenizer, new_model
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.prepare import (
    check,
    check_tasks,
    make_ready,
    skeleton,
    tokenizer_of,
    with_absolute_paths,
    with_fixed_date,
    within_positions,
)
from mft_ray.searches.pipeline import search

SECONDS = 30  # generous: the machine may be busy
CHAT = {"task": "chat", "prompt_column": "question", "answer_column": "answer"}
SIZES = {"n_train": 6, "n_validation": 2, "n_test": 2}


def _merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration with some of its sections' settings changed."""
    result = dict(tree)
    for section, settings in changes.items():
        result[section] = {**tree.get(section, {}), **settings}
    return result


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local checkpoint of two decoder layers."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = arithmetic.tokenizer()
    architecture = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    model = new_model({**architecture, "num_attention_heads": 2}, len(tokenizer), 0)
    save_model(model, dict(model.named_parameters()), tokenizer, folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Ten prompts and answers of the characters that the tiny tokenizer has."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}+{n}=", "answer": str(2 * n)}) + "\n" for n in range(10)))
    return path


def _refused(tree: dict[str, Any], root: Path) -> str:
    """The message of the refusal, once it is sure that it was quick, one paragraph, and left nothing."""
    began, before = time.monotonic(), sorted(root.rglob("*"))
    with pytest.raises(UserError) as caught:
        search(parse_config(_merged(tree, {"run": {"dir": str(root / "run")}})))
    assert time.monotonic() - began < SECONDS
    assert sorted(root.rglob("*")) == before
    message = str(caught.value)
    assert "\n" not in message.strip()
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {"space": {"layers": ["0-3"]}}}, "layer group 0-3 reaches beyond the model's 2 decoder layers"),
        ({"search": {"extra_points": [{"layers": "1-2"}]}}, "layer group 1-2 reaches beyond"),
        ({"search": {"extra_points": [{"ratio": 1.2}]}}, "ratio 1.2 is outside [0, 1)"),
        ({"train": {"batch_size": 15}, "scaling": {"workers": 2}}, "batch_size 15 does not divide into 2 workers"),
        (
            {"fft": {"train": {"batch_size": 9}, "scaling": {"workers": 2}}},
            "batch_size 9 does not divide into 2 workers",
        ),
        ({"data": {"task": "gsm8k", "train": "rows.jsonl"}}, "task gsm8k needs model.path"),
        ({"data": {**CHAT, "train": "rows.jsonl"}}, "task chat needs model.path"),
        ({"fft": {"given": True}}, "fft.given says that model.path is already fine-tuned"),
        ({"model": {"architecture": {"model_type": "lama"}}}, "lama"),
        ({"model": {"architecture": {"model_type": "vit"}}}, "vit"),
        ({"model": {"architecture": {"hidden_size": 32}}}, "model.architecture"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_settings_that_cannot_work_are_refused_before_ray_starts(tiny, tmp_path, changes, message):
    assert message in _refused(_merged(tiny, changes), tmp_path)


@pytest.mark.parametrize("path", ["/no/such/model", "./model", "~/no-such-model", "some/deep/model"])
def test_a_model_folder_that_is_missing_is_refused(tiny, tmp_path, path):
    tree = {**tiny, "model": {"path": path}}
    assert f"There is no model folder {path}" in _refused(tree, tmp_path)


def test_a_folder_that_holds_no_model_is_refused(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    message = _refused({**tiny, "model": {"path": str(tmp_path / "empty")}}, tmp_path)
    assert str(tmp_path / "empty") in message


@pytest.mark.usefixtures("ray_cluster")
def test_a_model_without_its_tokenizer_is_refused(tiny, tmp_path, rows, model_folder):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((model_folder / name).read_bytes())
    data = {**CHAT, **SIZES, "train": str(rows)}
    message = _refused({**tiny, "model": {"path": str(folder)}, "data": data}, tmp_path)
    assert f"Cannot load a tokenizer from {folder}" in message


@pytest.mark.parametrize("source", ["mixture", "train", "test"])
def test_missing_data_is_refused_before_a_ray_starts(tiny, tmp_path, model_folder, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.jsonl").touch()
    monkeypatch.setattr("mft_ray.runs.session.connected", None)
    parts = [{"path": "here.jsonl"}, {"path": "missing.jsonl", "rows": 5}]
    data = {"task": "math", **({"mixture": parts} if source == "mixture" else {source: "missing.jsonl"})}
    message = _refused({**tiny, "model": {"path": str(model_folder)}, "data": data}, tmp_path)
    setting = {"mixture": "data.mixture[1].path"}.get(source, f"data.{source}")
    assert f"{setting} is 'missing.jsonl', but there is no such file" in message


def test_local_data_can_be_found_from_any_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.jsonl").touch()
    parts = [{"path": "here.jsonl", "rows": 5}, {"path": "owner/name:configuration"}]
    config = with_absolute_paths(parse_config({**tiny, "data": {"task": "chat", "mixture": parts}}))
    assert [part.path for part in config.data.mixture] == [str(tmp_path / "here.jsonl"), "owner/name:configuration"]
    assert config.data.mixture[0].rows == 5


def test_a_link_is_not_followed_to_a_name_without_a_format(tiny, tmp_path):
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "train.jsonl").symlink_to(tmp_path / "blob")
    tree = {**tiny, "data": {"task": "chat", "train": str(tmp_path / "train.jsonl"), "chat_template": "{# x #}" * 900}}
    config = with_absolute_paths(parse_config(tree))
    assert config.data.train == str(tmp_path / "train.jsonl")
    assert config.data.chat_template == "{# x #}" * 900


def test_a_run_folder_in_use_is_refused(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    assert "not empty" in _refused(tiny, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_train": 100_000}, "asked for"),
        ({"max_length": 8, "digits": 4}, "no answer tokens after truncation"),
    ],
)
@pytest.mark.usefixtures("ray_cluster")
def test_data_that_cannot_be_generated_is_refused(tiny, tmp_path, changes, message):
    if changes.get("digits") == 4:  # nine prompt characters
        changes = {**changes, "n_train": 20}
    assert message in _refused(_merged(tiny, {"data": changes}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "missing.jsonl"}, "there is no such file or folder"),
        ({"train": "/no/such/folder"}, "there is no such file or folder"),
        ({"test": "missing.parquet"}, "data.test is 'missing.parquet'"),
        ({"prompt_column": "ask"}, "no column 'ask'; its columns are question, answer"),
        ({"prompt_column": None, "answer_column": None}, "no column 'messages'"),
        ({"answer_column": None}, "give both, or neither"),
        ({"n_train": 60}, "too few examples"),
        ({"train": None}, "data.train is not given"),
        ({"n_test": 9}, "too few examples"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
@pytest.mark.usefixtures("ray_cluster")
def test_data_that_cannot_be_read_is_refused(tiny, tmp_path, rows, model_folder, changes, message):
    data = {**CHAT, **SIZES, "train": str(rows), **changes}
    assert message in _refused({**tiny, "model": {"path": str(model_folder)}, "data": data}, tmp_path)


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_asks_for_more_than_there_is_is_refused(tiny, tmp_path):
    message = _refused(_merged(tiny, {"scaling": {"cpus_per_worker": 64}}), tmp_path)
    assert "A trial asks for 1 worker(s) with 64 CPU each" in message
    fft = _merged(tiny, {"fft": {**tiny["fft"], "scaling": {"gpus_per_worker": 1}}})
    assert "1 GPU each" in _refused(fft, tmp_path)


def test_good_settings_pass_and_write_nothing(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(tiny_config)
    assert list(tmp_path.iterdir()) == []


def test_start_model_and_data_are_made_once(tiny_config, tmp_path):
    folder = RunFolder(tmp_path / "run")
    start = make_ready(tiny_config, folder)
    sizes = {split: len(open_split(folder.data, split)) for split in SPLITS}
    assert sizes == {"train": 60, "validation": 40, "test": 50}
    model, tokenizer = load_model(start), load_tokenizer(start)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    before = {path: path.stat().st_mtime_ns for path in folder.root.rglob("*")}
    assert make_ready(tiny_config, folder) == start
    assert {path: path.stat().st_mtime_ns for path in folder.root.rglob("*")} == before


def test_a_given_model_is_used_where_it_lies(tiny, tmp_path, rows, model_folder, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    data = {**CHAT, **SIZES, "train": str(rows)}
    monkeypatch.setenv("HOME", str(model_folder.parent))
    for number, path in enumerate(("./tiny", "tiny", "~/tiny", str(model_folder))):
        config = parse_config({**tiny, "model": {"path": path}, "data": data})
        check(config)
        # Absolute: workers on other nodes do not share this process's directory.
        assert make_ready(config, RunFolder(tmp_path / f"run{number}")) == str(model_folder)


def test_a_domain_names_its_benchmarks_and_programs_are_not_run_unasked(tiny):
    asked = {**tiny, "model": {"path": "some/model"}, "data": {"task": "coding"}}
    config = parse_config(asked)
    assert config.tasks == ["humaneval", "humaneval_plus"]
    assert parse_config({**asked, "evaluation": {"tasks": []}}).tasks == []
    with pytest.raises(UserError, match=r"evaluation\.allow_code_execution"):
        check_tasks(parse_config({**tiny, "evaluation": {"tasks": ["humaneval"]}}))
    with pytest.raises(UserError, match=r"names gsm8k, which neither evaluation\.tasks nor other_tasks does"):
        parse_config({**tiny, "evaluation": {"task_data": {"gsm8k": "x"}}})


def test_tasks_that_leave_no_room_for_a_prompt_are_refused_before_anything_is_trained(tiny, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n' * 2)
    own = {"tasks": [str(tmp_path / "mine.jsonl")]}
    with pytest.raises(UserError, match=r"32 positions, so 256 new tokens .* \(evaluation\.task_max_new_tokens"):
        check_tasks(parse_config({**tiny, "evaluation": own}))
    check_tasks(parse_config({**tiny, "evaluation": {**own, "task_max_new_tokens": 4}}))


def test_tasks_that_chat_need_a_chat_template(tiny, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    with pytest.raises(UserError, match="its tokenizer has none"):
        check_tasks(parse_config({**tiny, "evaluation": {"tasks": [str(tmp_path / "mine.jsonl")], "chat": True}}))


DATED = (
    "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def test_a_run_keeps_the_day_on_which_it_began(model_folder: Path, tmp_path: Path) -> None:
    tokenizer = arithmetic.tokenizer()
    tokenizer.chat_template = DATED
    shutil.copytree(model_folder, tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    given = parse_config({"model": {"path": str(tmp_path / "model")}, "data": {"task": "chat", "train": "x.jsonl"}})
    begun = with_fixed_date(given)
    assert begun.data.template_date == date.today().isoformat()
    earlier = given.model_copy(update={"data": given.data.model_copy(update={"template_date": "2001-02-03"})})
    assert with_fixed_date(given, earlier).data.template_date == "2001-02-03"
    assert with_fixed_date(earlier) is earlier
    asked = [{"role": "user", "content": "?"}]
    assert tokenizer_of(earlier).apply_chat_template(asked, tokenize=False) == "2001-02-03?"
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path / "model")
    assert with_fixed_date(given) is given


def test_a_template_may_be_given_by_its_text_a_file_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "{% for m in messages %}{{ m['content'] }}{% endfor %}" + "{# long #}\n" * 400
    Path("t.jinja").write_text(text)
    Path("tulu").write_text("no template")
    for template, kept in ((text, text), ("t.jinja", str(tmp_path / "t.jinja")), ("tulu", "tulu"), (None, None)):
        config = parse_config({"model": {"path": "m"}, "data": {"chat_template": template}})
        assert with_absolute_paths(config).data.chat_template == kept


def spoil_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def spoil_missing(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def spoil_quantized(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))


def spoil_vocabulary(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)


def spoil_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def spoil_truncated(folder: Path) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_nan, "1 (model.norm.weight) of its tensors hold NaN"),
        (spoil_missing, "1 (model.layers.1.mlp.up_proj.weight) are missing"),
        (spoil_quantized, "it is quantized (gptq)"),
        (spoil_vocabulary, "no embedding of: 1 ([PAD])"),
        (spoil_adapter, "holds a model and an adapter"),
        (spoil_truncated, "is truncated or damaged"),
    ],
)
def test_a_checkpoint_of_a_strangers_is_refused_before_a_ray_starts(
    tiny, tmp_path, rows, model_folder, monkeypatch, spoil, says, given
):
    monkeypatch.setattr("mft_ray.runs.session.connected", None)
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    spoil(folder)
    data = {**CHAT, **SIZES, "train": str(rows)}
    tree = {**tiny, "model": {"path": str(folder)}, "data": data, "fft": {"given": given}}
    assert says in _refused(tree, tmp_path)
    if given and spoil is not spoil_vocabulary:
        before = {**tree, "model": {"path": str(model_folder), "pretrained": str(folder)}}
        assert says in _refused(before, tmp_path)


def test_rows_are_no_longer_than_the_models_positions(tiny, tmp_path):
    folder = RunFolder(tmp_path / "run")
    for wanted in (33, 1000):
        with pytest.raises(UserError, match=f"data.max_length is {wanted:,}, and the model has 32 positions"):
            check(parse_config(_merged(tiny, {"data": {"max_length": wanted}})))
    check(parse_config(_merged(tiny, {"data": {"max_length": 32}})))
    config = parse_config(tiny)
    assert within_positions(config, skeleton(config)).max_length == 32
    short = parse_config(_merged(tiny, {"data": {"max_length": 9}}))
    assert within_positions(short, skeleton(short)).max_length == 9
    unlimited = parse_config(_merged(tiny, {"model": {"architecture": {"model_type": "mamba", "hidden_size": 8}}}))
    model = skeleton(unlimited)
    assert within_positions(unlimited, model) == unlimited.data
    make_ready(config, folder)
    assert max(len(row["input_ids"]) for row in open_split(folder.data, "train")) <= 32


def test_long_rows_are_cut_to_learned_positions_by_default(tiny, tmp_path):
    tokenizer = arithmetic.tokenizer()
    model = new_model(
        {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 12}, len(tokenizer), 0
    )
    save_model(model, dict(model.named_parameters()), tokenizer, tmp_path / "model")
    lines = [json.dumps({"question": f"{n}=", "answer": str(n) * 20}) for n in range(10, 40)]
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    changes = {"train": str(tmp_path / "long.jsonl"), "too_long": "cut"}
    known = {key: value for key, value in changes.items() if key in DataConfig.model_fields}
    data = {**CHAT, **SIZES, **known}
    config = parse_config({**tiny, "model": {"path": str(tmp_path / "model")}, "data": data})
    check(config)
    folder = RunFolder(tmp_path / "run")
    make_ready(config, folder)
    assert {len(row["input_ids"]) for row in open_split(folder.data, "train")} == {12}


def test_a_row_with_a_token_that_the_model_has_not_is_refused(tiny, tmp_path, model_folder):
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    texts = [f"{n}+{n}=" for n in range(10)]
    rows = tmp_path / "rows.jsonl"

    def ready(texts: list[str], name: str) -> RunFolder:
        rows.write_text("".join(json.dumps({"question": text, "answer": "1"}) + "\n" for text in texts))
        data = {**CHAT, **SIZES, "train": str(rows)}
        config = parse_config({**tiny, "model": {"path": str(folder)}, "data": data})
        check(config)
        run = RunFolder(tmp_path / name)
        make_ready(config, run)
        return run

    assert len(open_split(ready(texts, "good").data, "train")) == 6
    with pytest.raises(UserError, match=r"a text with '<image>' in it, .* token 16, and the model has 16 embeddings"):
        ready([f"{text}<image>" for text in texts], "bad")
    assert not (tmp_path / "bad" / "work" / "data").exists()


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        ({"num_hidden_layers": 0}, "it has 0 decoder layers"),
        ({"num_hidden_layers": 10**9}, "it has 1000000000 decoder layers"),
        ({"num_attention_heads": 0}, "makes no causal LM"),
        ({"num_key_value_heads": 3}, "makes no causal LM"),
        ({"hidden_size": -4}, "makes no causal LM"),
        ({"hidden_size": 10**12}, "makes no causal LM"),
        ({"intermediate_size": 0}, "of its weights are empty"),
        ({"hidden_act": "nonsense"}, "'nonsense'"),
        ({"attention_dropout": 5}, "dropout probability"),
        ({"vocab_size": 5}, "vocab_size cannot be set"),
        ({"rope_parameters": {"rope_type": "none such"}}, "makes no causal LM"),
        ({"model_type": ["llama"]}, "makes no causal LM"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config cannot be set"),
    ],
    ids=str,
)
def test_an_architecture_of_nonsense_is_refused(tiny, tmp_path, architecture, says):
    known = tiny["model"]["architecture"]
    assert says in _refused({**tiny, "model": {"architecture": {**known, **architecture}}}, tmp_path)


def test_an_attention_that_there_is_not(tiny, tmp_path):
    message = _refused(_merged(tiny, {"model": {"attention": "flash"}}), tmp_path)
    assert "model.attention 'flash' is unknown to transformers, which has eager" in message
    check(parse_config(_merged(tiny, {"model": {"attention": "sdpa"}})))


@pytest.mark.parametrize("name", ["x" * 300, "a\tb" * 200])
def test_a_run_folder_that_cannot_be_made(tiny, tmp_path, name):
    for where in (tmp_path / name, tmp_path / name / "run"):
        with pytest.raises(UserError, match=r"a name in it is too long"):
            search(parse_config(_merged(tiny, {"run": {"dir": str(where)}})))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run\.dir .* is a file"):
        search(parse_config(_merged(tiny, {"run": {"dir": str(tmp_path / "file" / "run")}})))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_datasets_would_take_for_a_chain_of_places_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a::b" / "data"
    with pytest.raises(UserError, match=r"has '::' in it"):
        prepare(DataConfig(), arithmetic.tokenizer(), folder)
    assert not folder.parent.exists()


def test_a_model_made_from_settings_stops_at_its_own_tokenizers_end(tiny_config: Config, tmp_path: Path) -> None:
    """An architecture's defaults are tokens of another tokenizer."""
    folder = RunFolder(tmp_path / "run")
    model = load_model(make_ready(tiny_config, folder))
    assert stop_tokens(model, arithmetic.tokenizer()) == {arithmetic.tokenizer().eos_token_id}


def test_code_of_the_users_own_is_named_before_it_runs(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jsonl").write_text('{"prompt": "1+2="}\n{"prompt": "2+2="}\n')
    (tmp_path / "plain.jsonl").write_text('{"prompt": "1+2=", "answer": "3"}\n{"prompt": "2+2=", "answer": "4"}\n')
    scores = tmp_path / "scores.py"
    scores.write_text("def score(example, text):\n    return 1.0\n")
    tasks = [f"{tmp_path / 'mine.jsonl'}:{scores}", str(tmp_path / "plain.jsonl")]
    check_tasks(parse_config({**tiny, "evaluation": {"tasks": tasks, "task_max_new_tokens": 4}}))
    [line] = capsys.readouterr().out.splitlines()
    assert f"runs {scores} as code of yours, with all that you may do" in line
