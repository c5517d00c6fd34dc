"""The drawing of a search on a terminal: what it says, and that it never ends the search."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType

import pytest
from rich.console import Console

from mft_ray.report import terminal
from mft_ray.report.leaderboard import table
from mft_ray.report.terminal import Outlook, drawn, picture
from mft_ray.runs.live.snapshot import read_live
from mft_ray.runs.reading import read
from mft_ray.utils import console
from mft_ray.utils.console import log


class Terminal(io.StringIO):
    """What a terminal is to who writes to it."""

    def fileno(self) -> int:
        return 1

    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_work(make_run: Callable[..., Path]) -> Path:
    """A made-up search with twelve trials that have ended and one at work, which lags behind all."""
    folder = make_run(name="it", verdict=False)
    (folder / "work" / "data" / "train").mkdir(parents=True)
    (folder / "work" / "fft_model.json").touch()
    trial = folder / "work" / "trials" / "late"
    trial.mkdir(parents=True)
    (trial / "config.json").write_text(json.dumps({"ratio": 0.3, "layers": "0-3", "lr": 1e-3}))
    point = {"step": 40, "score": 0.5, "standard_error": 0.01, "tokens": 10, "seconds": 7.0, "loss": 1.0}
    history = [{**point, "ratio": 0.3, "eligible": True}]
    (trial / "progress.json").write_text(json.dumps({"step": 40, "history": history}))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(f"{config}search: {{trials: 16}}\n")
    return folder


def shown(folder: Path, outlook: Outlook, width: int = 160, height: int = 40) -> str:
    out = Console(file=io.StringIO(), width=width, height=height)
    out.print(picture(read_live(folder), outlook, height, width))
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_it_says_what_the_lines_say(at_work: Path) -> None:
    outlook = Outlook()
    outlook.left, outlook.waits = (
        "about 3 min of trials left, budget left: 2 h",
        "a trial has waited 20 s for 1 x (1 GPU)",
    )
    text = shown(at_work, outlook)
    assert "runs trials · FFT 88.40 % · 1 trials at work, 13 of 16 ended" in text
    assert [f"trial0{place}" in text for place in range(6)] == [True] * 5 + [False]
    assert "late" in text  # though it is behind all others
    assert "FFT baseline" in text
    assert "left  about 3 min of trials left, budget left: 2 h" in text
    assert "waits a trial has waited 20 s for 1 x (1 GPU)" in text


def test_before_trials_it_says_how_far_fft_is(at_work: Path) -> None:
    (at_work / "work" / "fft_model.json").unlink()
    assert "trains the FFT baseline · FFT: step 2,400, 88.40 %" in shown(at_work, Outlook())


def test_trials_that_are_watched_by_another_metric_are_shown_by_that(at_work: Path) -> None:
    for name in ("baseline.json", "leaderboard.json"):
        content = json.loads((at_work / name).read_text())
        record = content["baseline"] if name == "leaderboard.json" else content
        record["watched"] = {"metric": "answer_logprob", "validation": {"score": 0.25, "n": 2000}}
        (at_work / name).write_text(json.dumps(content))
    text = shown(at_work, Outlook())
    assert "late step 40: 0.5000 nats/token, +0.2500 nats/token against FFT (log-probability per answer token)" in text


def test_on_a_narrow_terminal_scores_are_whole_and_settings_give_way(at_work: Path) -> None:
    text = shown(at_work, Outlook(), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "90.60" in text
    assert "+2.20" in text
    [late] = [line for line in text.splitlines() if line.strip().startswith("13 late") or " late " in line]
    assert "50.00" in late


def test_the_last_leaderboard_has_all_settings_on_a_narrow_terminal_too(at_work: Path) -> None:
    out = Console(file=io.StringIO(), width=80)
    out.print(table(read(at_work), 3, width=80))
    assert isinstance(out.file, io.StringIO)
    text = " ".join(out.file.getvalue().split())
    assert "90.60" in text
    assert "…" not in text


def test_few_lines_are_not_filled_with_trials(at_work: Path) -> None:
    text = shown(at_work, Outlook(), height=15)
    assert "trial01" in text
    assert "trial02" not in text
    assert "late" in text


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal, to be put in stdout's place: pytest puts its own there for each test."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    return Terminal()


def test_lines_stand_above_and_the_drawing_goes_at_the_end(at_work: Path, shell: Terminal) -> None:
    with redirect_stdout(shell), drawn(at_work, Outlook()):
        deadline = time.monotonic() + 60
        while "FFT baseline" not in shell.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
        log("one line")
    drawing, after = shell.getvalue().split("one line")
    assert "FFT baseline" in drawing
    assert "FFT baseline" in after  # again, below it
    assert after.endswith(("\x1b[2K", "\x1b[?25h"))


def test_a_signals_handler_prints_whatever_it_interrupts(at_work: Path, shell: Terminal) -> None:
    """What Ctrl-C is answered with came while another line was being printed, and the search did not end."""
    handled = 0

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal handled
        handled += 1
        log(f"handled {handled};")

    def interrupt() -> None:
        for _ in range(50):
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.002)

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        with redirect_stdout(shell), drawn(at_work, Outlook()):
            interrupting = threading.Thread(target=interrupt)
            interrupting.start()
            for number in range(200):
                log(f"line {number};")
            interrupting.join()
    finally:
        signal.signal(signal.SIGUSR2, before)
    text = shell.getvalue()
    assert handled > 0
    said = [*(f"line {number};" for number in range(200)), *(f"handled {number};" for number in range(1, handled + 1))]
    assert [line for line in said if text.count(line) != 1] == []


def test_an_error_ends_the_drawing_and_says_so(
    tmp_path: Path, shell: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "_EVERY_S", 0.0)
    with redirect_stdout(shell), drawn(tmp_path / "nowhere", Outlook()):
        for thread in threading.enumerate():
            if thread.name == "terminal":
                thread.join(60)
        log("the search is at work")
    text = shell.getvalue()
    assert "no longer drawn here, and goes on: UserError: There is no run folder" in text
    assert "the search is at work" in text.splitlines()[-1]


@pytest.mark.parametrize("variable", [("TERM", "dumb"), ("CI", "true")])
def test_where_nobody_looks_nothing_is_drawn(
    variable: tuple[str, str], at_work: Path, shell: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*variable)
    with redirect_stdout(shell), drawn(at_work, Outlook()):
        log("one line")
    assert "\x1b" not in shell.getvalue()


@pytest.mark.parametrize("how", [{"quiet": True}, {"document": True}])
def test_who_wants_it_quiet_sees_no_drawing(how: dict[str, bool], shell: Terminal) -> None:
    with redirect_stdout(shell):
        with console.command_output(**how):
            assert not console.drawable()
        assert console.drawable()
