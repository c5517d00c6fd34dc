"""Pieces of a split: the same rows and counts in one go, piece by piece, by many processes, after an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mft_ray.config import DataConfig
from mft_ray.data import arithmetic, pieces
from mft_ray.data.accounting import Accounting, SplitCounts
from mft_ray.data.encoding import encode
from mft_ray.data.splits import load
from mft_ray.data.store import SPLITS, open_split, prepare

TOKENIZER = arithmetic.tokenizer()


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Rows of which some do not fit, some are cut, and the rest is used."""
    rows = [{"question": "1" * (3 + n % 40), "answer": f"{n:03d}" + "2" * (n % 7)} for n in range(200)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({**row, "question": f"{n}+{row['question']}="}) for n, row in enumerate(rows)))
    sizes: dict[str, Any] = {"n_validation": 30, "n_test": 30, "max_length": 45}
    return DataConfig(task="gsm8k", train=str(file), too_long="cut", **sizes)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pieces of few examples."""
    monkeypatch.setattr(pieces, "_PIECE", 16)


def at_once(config: DataConfig) -> tuple[dict[str, list[Any]], Accounting]:
    """What there is without pieces."""
    accounting = Accounting()
    rows = {}
    for split, examples in load(config, lambda _: None, accounting).items():
        counts: SplitCounts = accounting.split(split)
        settings: dict[str, Any] = {"system": config.system, "too_long": config.too_long}
        rows[split] = encode(examples, TOKENIZER, config.max_length, counts=counts, log=lambda _: None, **settings)
    return rows, accounting


def check(config: DataConfig, folder: Path, accounting: Accounting) -> None:
    rows, counted = at_once(config)
    for split in SPLITS:
        assert list(open_split(folder, split).remove_columns(pieces.ANSWERS)) == rows[split]
    assert accounting.content() == counted.content()
    assert [path.name for path in folder.parent.iterdir() if path.suffix != ".jsonl"] == [folder.name]


def by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_WORTH_S", 0.0)
    monkeypatch.setattr(pieces, "_processors", lambda: 2)


def test_pieces_are_the_whole(config: DataConfig, tmp_path: Path) -> None:
    check(config, tmp_path / "data", prepare(config, TOKENIZER, tmp_path / "data", lambda _: None))


def test_other_processes_make_the_same(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    by_others(monkeypatch)
    monkeypatch.setattr(pieces, "_TELL_S", 0.0)
    said: list[str] = []
    check(config, tmp_path / "data", prepare(config, TOKENIZER, tmp_path / "data", said.append))
    told = [line for line in said if "left" in line and "of 140 examples encoded, about" in line]
    assert len(told) >= 3
    assert capfd.readouterr() == ("", "")


def test_what_was_encoded_before_an_interruption_is_used(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, written = pieces._write, []

    def interrupted(*arguments: Any) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt
        plain(*arguments)
        written.append(arguments)

    with monkeypatch.context() as patched:
        patched.setattr(pieces, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, TOKENIZER, tmp_path / "data", lambda _: None)
    assert not (tmp_path / "data").exists()

    again: list[Any] = []

    def noted(*arguments: Any) -> None:
        again.append(arguments)
        plain(*arguments)

    monkeypatch.setattr(pieces, "_write", noted)
    said: list[str] = []
    check(config, tmp_path / "data", prepare(config, TOKENIZER, tmp_path / "data", said.append))
    whole = sum(-(-len(examples) // 16) for examples in load(config, lambda _: None).values())
    assert len(again) == whole - 4
    assert "The train split: 64 examples are encoded" in said


def test_what_was_encoded_otherwise_is_not_used(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mft_ray.data.store._save", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, TOKENIZER, tmp_path / "data", lambda _: None)
    other = config.model_copy(update={"max_length": 30})
    check(other, tmp_path / "data", prepare(other, TOKENIZER, tmp_path / "data", lambda _: None))


def test_a_process_that_is_killed_costs_time_only(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_others(monkeypatch)
    mark = str(tmp_path.parent / f"{tmp_path.name}-killed")
    plain = pieces._write_there

    def killed(*arguments: Any) -> int:
        if not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*arguments)

    monkeypatch.setattr(pieces, "_write_there", killed)
    said: list[str] = []
    check(config, tmp_path / "data", prepare(config, TOKENIZER, tmp_path / "data", said.append))
    assert sum("was killed, perhaps for want of memory; one goes on" in line for line in said) == 1


def test_a_program_without_a_main_guard_is_not_run_twice(config: DataConfig, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from pathlib import Path\n"
        "from mft_ray.config import DataConfig\n"
        "from mft_ray.data import arithmetic, pieces\n"
        "from mft_ray.data.store import prepare\n"
        "pieces._PIECE, pieces._WORTH_S, pieces._processors = 16, 0.0, lambda: 2\n"
        "print('begun', flush=True)\n"
        f"config = DataConfig.model_validate_json({config.model_dump_json()!r})\n"
        f"prepare(config, arithmetic.tokenizer(), Path({str(tmp_path / 'made' / 'data')!r}), lambda _: None)\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=400, check=False)
    assert (done.returncode, done.stdout) == (0, "begun\n"), done.stderr
