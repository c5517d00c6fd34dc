"""What is printed where: progress, warnings, one document, and what libraries say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mft_ray.utils.console import chatter_in, command_output, kept_log, log, log_warning, printed_by


def test_quiet_leaves_out_progress_and_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with command_output(quiet=True), kept_log(tmp_path / "log.txt"):
        log("a step")
        log_warning("a worker has died")
    out = capsys.readouterr().out
    assert "a step" not in out
    assert "a worker has died" in out
    assert "a step" in (tmp_path / "log.txt").read_text()
    log("a step")
    assert "a step" in capsys.readouterr().out


def test_lines_can_be_printed_by_something_else(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    with printed_by(said.append):
        log("one")
    assert capsys.readouterr().out == ""
    assert said[0].endswith("] one")


SCRIPT = """
import logging, os, sys
from pathlib import Path
library = logging.StreamHandler(sys.stdout)  # as DeepSpeed has one, made before
from mft_ray.utils.console import chatter_in, command_output, log

def chatter():
    os.write(1, b"from C on stdout\\n")
    os.write(2, b"from C on stderr\\n")
    print("a warning of Python's", file=sys.stderr)
    library.emit(logging.LogRecord("x", 20, "", 0, "a logger's line", (), None))
    os.system("echo from a process")

def work():
    with chatter_in(Path(sys.argv[1])):
        log("ours")
        print("ours too")
        chatter()

if sys.argv[2] == "alone":
    work()
else:
    with command_output(document=sys.argv[2] == "document"):
        work()
print("the end")
"""


def ran(path: Path, how: str) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, path, how], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_what_libraries_say_goes_into_the_file_and_what_we_say_does_not(tmp_path: Path) -> None:
    out, err = ran(tmp_path / "said.txt", "command")
    assert [line.rpartition("] ")[2] for line in out.splitlines()] == ["ours", "ours too", "the end"]
    assert err == ""
    said = (tmp_path / "said.txt").read_text()
    for text in ("from C on stdout", "from C on stderr", "a warning of Python's", "a logger's line", "from a process"):
        assert text in said
    assert "ours" not in said


def test_stdout_is_for_the_document_alone(tmp_path: Path) -> None:
    out, err = ran(tmp_path / "said.txt", "document")
    assert out == "the end\n"
    assert "ours too" in err
    assert "from C" not in err


def test_a_program_of_somebody_elses_keeps_its_output(tmp_path: Path) -> None:
    out, err = ran(tmp_path / "said.txt", "alone")
    assert "from C on stdout" in out
    assert "from C on stderr" in err
    assert not (tmp_path / "said.txt").exists()


def test_no_chatter_leaves_no_file(tmp_path: Path) -> None:
    with command_output(), chatter_in(tmp_path / "said.txt"):
        pass
    assert not (tmp_path / "said.txt").exists()


def test_a_disk_that_cannot_be_written_leaves_all_in_sight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with command_output(), chatter_in(tmp_path / "none" / "said.txt"):
        print("in sight")
    assert capsys.readouterr().out == "in sight\n"


def test_what_fails_inside_is_raised(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), command_output(), chatter_in(tmp_path / "said.txt"):
        raise OSError("full")
