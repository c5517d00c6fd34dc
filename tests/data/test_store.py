import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mft_ray.config import DataConfig
from mft_ray.data import arithmetic
from mft_ray.data.encoding import encode
from mft_ray.data.pieces import ANSWERS
from mft_ray.data.splits import load
from mft_ray.data.store import SPLITS, TOKENIZER, open_split, prepare, shared_sources
from mft_ray.errors import UserError

CONFIG = DataConfig(task="arithmetic", n_train=30, n_validation=10, n_test=20)


def test_what_is_opened_is_what_was_encoded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = arithmetic.tokenizer()
    prepare(CONFIG, tokenizer, tmp_path / "new" / "data")
    for split, examples in load(CONFIG).items():
        found = list(open_split(tmp_path / "new" / "data", split).remove_columns(ANSWERS))
        assert found == encode(examples, tokenizer, 1024)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["data"]
    assert capfd.readouterr() == ("", "")


def test_preparing_again_replaces(tmp_path: Path) -> None:
    for seed in (0, 1):
        prepare(CONFIG.model_copy(update={"seed": seed}), arithmetic.tokenizer(), tmp_path / "data")
    expected = [example.id for example in load(CONFIG.model_copy(update={"seed": 1}))["test"]]
    assert open_split(tmp_path / "data", "test")["id"][:] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_bad_input_leaves_nothing_behind(tmp_path: Path) -> None:
    rows = [{"question": "1" * 50 + str(n), "answer": "2"} for n in range(20)]
    train = tmp_path / "long.jsonl"
    train.write_text("\n".join(map(json.dumps, rows)))
    bad = DataConfig(task="gsm8k", train=str(train), n_validation=2, n_test=2, max_length=20)
    with pytest.raises(UserError, match="The train split has no answer tokens after truncation"):
        prepare(bad, arithmetic.tokenizer(), tmp_path / "new" / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["long.jsonl"]


def test_a_split_that_is_not_there_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no prepared data at .*{', '.join(SPLITS)}"):
        open_split(tmp_path / "data", "train")
    prepare(CONFIG, arithmetic.tokenizer(), tmp_path / "data")
    with pytest.raises(UserError, match="no prepared data"):
        open_split(tmp_path / "data", "dev")


def test_shared_sources_are_known_and_others_are_not_talked_about(tmp_path: Path) -> None:
    rows = [{"question": f"1+{n}=", "answer": str(n + 1), "page": f"{n // 2}"} for n in range(40)]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig(task="gsm8k", train=str(tmp_path / "all.jsonl"), n_validation=4, n_test=7)
    prepare(config, arithmetic.tokenizer(), tmp_path / "alone")
    prepare(config.model_copy(update={"source_column": "page"}), arithmetic.tokenizer(), tmp_path / "shared")
    assert shared_sources(tmp_path / "alone", "test") is None
    sources = shared_sources(tmp_path / "shared", "test")
    assert sources
    assert len(sources) == 7
    assert len(set(sources)) == 4
    old = open_split(tmp_path / "shared", "test").remove_columns("source")
    old.save_to_disk(str(tmp_path / "old" / "test"))
    assert shared_sources(tmp_path / "old", "test") is None


def test_a_date_is_fixed_when_the_data_is_prepared(tmp_path: Path) -> None:
    tokenizer = arithmetic.tokenizer()
    tokenizer.chat_template = (
        "{{ strftime_now('%Y-%m-%d') }}"
        "{% for m in messages %}{{ m['content'] + (eos_token if m['role'] == 'assistant' else '') }}{% endfor %}"
    )
    config = CONFIG.model_copy(update={"template_date": "1999-12-31"})
    prepare(config, tokenizer, tmp_path / "data")
    kept = AutoTokenizer.from_pretrained(tmp_path / "data" / TOKENIZER)
    row = open_split(tmp_path / "data", "test")[0]
    prompt = [{"role": "user", "content": row["id"]}]
    assert kept.apply_chat_template(prompt, tokenize=False) == f"1999-12-31{row['id']}"
    assert row["prompt_ids"] == kept(f"1999-12-31{row['id']}", add_special_tokens=False).input_ids
    assert "strftime_now('%Y-%m-%d')" in tokenizer.chat_template
    assert not tokenizer.chat_template.startswith("{#")  # the caller's is as it was


def test_what_encoding_leaves_out_is_counted(tmp_path: Path) -> None:
    rows = [{"question": "1" * n, "answer": "2" * (1 if n % 4 else 30)} for n in range(1, 25)]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig(task="gsm8k", train=str(tmp_path / "all.jsonl"), n_validation=5, n_test=5, max_length=32)
    said: list[str] = []
    counts = prepare(config, arithmetic.tokenizer(), tmp_path / "data", said.append).splits
    assert sum(split.left_out["no answer fits data.max_length with its prompt"] for split in counts.values()) == 6
    assert sum(split.used for split in counts.values()) == 18
    assert sum(len(open_split(tmp_path / "data", split)) for split in SPLITS) == 18
    assert sum(split.answer_tokens for split in counts.values()) == 36
    assert any("examples left out: no answer fits data.max_length" in line for line in said)
    cut = config.model_copy(update={"too_long": "cut"})
    counts = prepare(cut, arithmetic.tokenizer(), tmp_path / "data", said.append).splits
    assert sum(split.used for split in counts.values()) == 24
    assert sum(split.cut for split in counts.values()) == 6
