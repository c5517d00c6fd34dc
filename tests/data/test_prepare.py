import json
from pathlib import Path

import pytest

from mft_ray.config import DataConfig
from mft_ray.data import arithmetic
from mft_ray.data.encoding import encode
from mft_ray.data.prepare import SPLITS, open_split, prepare, shared_sources
from mft_ray.data.sources import load
from mft_ray.errors import UserError

CONFIG = DataConfig(task="arithmetic", n_train=30, n_validation=10, n_test=20)


def test_what_is_opened_is_what_was_encoded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = arithmetic.tokenizer()
    prepare(CONFIG, tokenizer, tmp_path / "new" / "data")
    for split, examples in load(CONFIG).items():
        assert list(open_split(tmp_path / "new" / "data", split)) == encode(examples, tokenizer, 1024)
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
