"""A search as it speaks: on a real terminal, in a log, to a program."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small_searches
import yaml

from mft_ray.cli.main import main
from mft_ray.runs.records import Verdict

COLUMNS = 120
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@dataclass
class Spoken:
    """What a search has said on a terminal.

    Attributes:
        folder: of the run.
        raw: all that came, as it came.
        status: exit status.
    """

    folder: Path
    raw: str
    status: int

    @property
    def text(self) -> str:
        return _ESCAPES.sub("", self.raw)


def on_terminal(cwd: Path, *arguments: str) -> tuple[str, int]:
    """Run a command on a terminal of its own; return what it wrote there and its exit status."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    environment = {**small_searches.outer(), "TERM": "xterm-256color"}
    environment.pop("CI", None)
    command = [sys.executable, "-m", "mft_ray", *arguments]
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdin=its, stdout=its, stderr=its, start_new_session=True
    )
    os.close(its)
    said = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the last process that had it open has ended
            break
        if not chunk:
            break
        said += chunk
    os.close(ours)
    return said.decode(), process.wait(small_searches.TIMEOUT_S)


@pytest.fixture(scope="module")
def spoken(make_tiny: Callable[[], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Spoken:
    home = tmp_path_factory.mktemp("terminal")
    tree = make_tiny()
    tree["train"] |= {"steps": 200, "eval_every": 20}
    (home / "tiny.yaml").write_text(yaml.safe_dump(tree))
    said, status = on_terminal(home, "tune", "--config", "tiny.yaml", "--set", "run.dir=it")
    return Spoken(home / "it", said, status)


@pytest.mark.slow
def test_a_terminal_shows_how_the_search_goes(spoken: Spoken) -> None:
    assert spoken.status == 0, spoken.text[-3000:]
    assert "trains the FFT baseline" in spoken.text
    assert re.search(r"runs trials · FFT \d+\.\d\d % · \d trials at work, \d of 2 ended", spoken.text)
    assert re.search(r"[0-9a-f]{8}.*running", spoken.text)


@pytest.mark.slow
def test_the_lines_of_a_log_are_there_whole(spoken: Spoken) -> None:
    lines = re.split(r"[\r\n]+", spoken.text)
    kept = (spoken.folder / "work" / "log.txt").read_text().splitlines()
    assert len(kept) > 10
    for line in kept:
        [_, time, text] = line.split(" ", 2)
        assert f"[{time}] {text}" in "\n".join(lines), line


@pytest.mark.slow
def test_at_the_end_only_the_result_is_left(spoken: Spoken) -> None:
    """After the last line of progress stand leaderboard, verdict, places and what is next, and nothing is drawn."""
    _, end = spoken.raw.split("4/4 mask, model and report")
    assert "\x1b[?25h" in end  # the cursor is back
    after = _ESCAPES.sub("", end.split("\x1b[?25h")[-1])
    verdict = Verdict.load(spoken.folder / "verdict.json")
    assert verdict.sentence is not None
    assert verdict.sentence in re.sub(r"\s+", " ", after)
    assert f"report  {spoken.folder}/report.html" in after
    assert "what next" in after
    assert f"mft-ray tune --resume {spoken.folder} --set search.trials=16 --look-again" in after


@pytest.mark.slow
def test_nothing_else_speaks(spoken: Spoken) -> None:
    assert not re.search(r"deepspeed|raylet|WARNING|UserWarning", spoken.text, re.IGNORECASE)
    said = spoken.folder / "work" / "library_output.txt"
    assert not said.exists() or said.stat().st_size > 0


@pytest.mark.slow
def test_a_program_gets_one_document_and_the_progress_apart(spoken: Spoken) -> None:
    command = [sys.executable, "-m", "mft_ray", "tune", "--resume", str(spoken.folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=small_searches.outer(), timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["run"] == str(spoken.folder)
    assert found["verdict"] == json.loads((spoken.folder / "verdict.json").read_text())
    assert found["winner"]["trial_id"] == found["verdict"]["trial_id"]
    assert Path(found["best"]["mask"]).exists()
    assert found["best"]["adapter"] is None
    assert {"why", "command"} == set(found["next_steps"][0])
    assert "4/4 mask, model and report" in done.stderr


def test_a_mistake_is_one_line_also_where_a_document_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "--resume", str(tmp_path / "none"), "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
