"""Programs that must not do what they try, run for real."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import textwrap
import time
import venv
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from mft_ray.errors import UserError
from mft_ray.evaluation.sandbox import runner as jail
from mft_ray.evaluation.sandbox.runner import Limits, Problem, Ran, run, run_all
from mft_ray.evaluation.tasks.code import _definitions

SHORT = Limits(seconds=2, megabytes=768)


def whole(program: str) -> Problem:
    """A program that does all it does when it is called."""
    body = textwrap.indent(program, "    ")
    return Problem(f"def main():\n{body}\n", "def check(candidate):\n    assert candidate() is None", "main")


@pytest.mark.parametrize(
    "program",
    [
        "assert sorted([2, 1]) == [1, 2]",
        "import math, re, collections, itertools, hashlib, typing\nassert math.gcd(4, 6) == 2",
        "import numpy as np\nassert np.allclose(np.ones((30, 30)) @ np.ones((30, 30)), 30)",
        "import numpy as np\nassert (np.ones((700, 700)) @ np.ones((700, 700)) == 700).all()",  # BLAS may want threads
        "print('x' * 100_000)",
        "import sys\nsys.setrecursionlimit(5000)",
        "class A:\n    def b(self): return 1\nassert A().b() == 1 and __name__ == '__main__'",
        # Imports that would open a file, or import what does, were it not there already.
        "from datetime import datetime\nassert datetime.strptime('2024-01-17', '%Y-%m-%d').day == 17",
        "import csv, io\nassert list(csv.reader(io.StringIO('a,b'))) == [['a', 'b']]",
        "import numpy as np\nassert np.random.default_rng(0).random(3).shape == (3,)",
        "import numpy as np\nassert np.allclose(np.linalg.inv(np.eye(2)), np.fft.ifft(np.fft.fft(np.eye(2))))",
        "from numpy.polynomial import Polynomial\nassert Polynomial([1, 2])(2) == 5",
        "assert '€'.encode('cp1252') == b'\\x80' and b'abc'.decode('utf-16-le' if 0 else 'mac_roman') == 'abc'",
        "import random, secrets\nassert random.SystemRandom().random() < 1 and len(secrets.token_hex(2)) == 4",
        "import asyncio, threading, concurrent.futures, logging, argparse, pathlib, tempfile, zoneinfo, subprocess",
        "import ast, difflib, html, locale, gettext, urllib.parse, xml.etree.ElementTree, unittest, decimal, fractions",
        "import warnings\nwarnings.warn('x')\nimport logging\nlogging.getLogger('a').warning('b')",
        "try:\n    input()\nexcept EOFError:\n    pass\nelse:\n    raise ValueError",
        "import os, sys\nos.write(1, b'x')\nsys.stderr.write('x')",
    ],
)
def test_what_only_computes_passes(program: str) -> None:
    assert run(whole(program)) == Ran(True)


LIBC = "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\n"
REFUSED = "[Errno 1] Operation not permitted"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2", "AssertionError:"),
        ("import nothing_of_the_kind", "No module named"),
        ("def f(): f()\nf()", "RecursionError"),
        # Ends that are no success.
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "the program ended before its tests did"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import ctypes; ctypes.string_at(0)", "the program ended before its tests did"),
        # Too much of something.
        ("while True: pass", "it took longer than 2 s"),
        ("import time; time.sleep(100)", "it took longer than 2 s"),
        ("import time\nwhile True:\n    try: time.sleep(9)\n    except BaseException: pass", "it took longer than 2 s"),
        ("bytearray(10 * 2**30)", "MemoryError"),
        ("a = []\nwhile True: a.append('x' * 10**6)", "MemoryError"),
        ("import os\nwhile True: os.write(1, b'x' * 1000)", "it took longer than 2 s"),
        # Processes and signals.
        ("import os\nwhile True: os.fork()", REFUSED),
        ("import os\nos.execv('/bin/true', ['true'])", REFUSED),
        ("import os\nos.system('true') == 0 or 1 / 0", "ZeroDivisionError"),
        ("import subprocess\nsubprocess.run(['true'])", REFUSED),
        ("import threading\nthreading.Thread(target=print).start()", "can't start new thread"),
        ("import os\nos.kill(os.getppid(), 9)", REFUSED),
        ("import os\nos.kill(-1, 9)", REFUSED),
        (LIBC + "assert c.kill(1, 9) == 0", "AssertionError"),
        # The network.
        ("import socket\nsocket.socket()", REFUSED),
        (LIBC + "assert c.socket(2, 1, 0) >= 0", "AssertionError"),
        # Files, secrets, and the way out of limits.
        ("open('/etc/hostname').read()", REFUSED),
        ("open('/proc/self/environ').read()", REFUSED),
        ("import os\nopen(f'/proc/{os.getppid()}/environ').read()", REFUSED),
        ("import os\nos.listdir('/')", REFUSED),
        ("import os\nos.remove('/etc/hostname')", REFUSED),
        (LIBC + "assert c.ptrace(16, 1, 0, 0) == 0", "AssertionError"),
        (LIBC + "assert c.syscall(437, -100, b'/etc/hostname', 0, 24) >= 0", "AssertionError"),  # openat2
        (LIBC + "assert c.prctl(22, 0, 0, 0, 0) == 0", "AssertionError"),  # to lift the filter
        ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "ValueError"),
    ],
)
def test_what_does_more_has_not_passed(program: str, reason: str) -> None:
    began, processes = time.monotonic(), set(psutil.Process().children())
    ran = run(whole(program), SHORT)
    assert not ran.passed
    assert reason in ran.reason
    assert "\n" not in ran.reason
    assert len(ran.reason) < 400
    assert time.monotonic() - began < 15
    assert set(psutil.Process().children()) == processes


def test_nothing_is_written(tmp_path: Path) -> None:
    target = tmp_path / "made"
    ran = run(whole(f"open({str(target)!r}, 'w').write('x')"), SHORT)
    assert REFUSED in ran.reason
    assert not target.exists()


def test_secrets_of_the_environment_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET_TOKEN", "hush")
    assert os.environ["A_SECRET_TOKEN"]
    assert run(whole("import os\nassert not {'A_SECRET_TOKEN', 'HOME'} & set(os.environ)")) == Ran(True)


def test_a_machine_that_cannot_confine_runs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "jailed.py"
    text = Path(jail._SCRIPT).read_text()
    script.write_text(text.replace("platform.machine()", "'pdp11'"))
    shutil.copy(Path(jail._SCRIPT).with_name("plain.py"), tmp_path)
    monkeypatch.setattr(jail, "_SCRIPT", script)
    with pytest.raises(UserError, match=r"cannot be confined \(Linux .*KeyError: 'pdp11'"):
        run(whole("assert True"))


DOUBLES = "def check(candidate):\n    assert candidate(2) == 4"

# By the names that were asked for: each in the place of a function's answer, which alone would pass.
HARMS = {
    "nothing": "",
    "an endless loop": "while True: pass",
    "a fork bomb": "import os\nwhile True: os.fork()",
    "an allocation of 10 GB": "held = bytearray(10 * 2**30)",
    "a write outside its folder": "open({file!r}, 'w').write('x')",
    "a write in its folder": "open('x', 'w').write('x')",
    "a socket": "import socket\nsocket.create_connection(('127.0.0.1', {port}))",
    "a socket by the C library": LIBC + "assert c.socket(2, 1, 0) >= 0",
    "os.kill of the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "os.kill of the parent's group": "import os, signal\nos.kill(-os.getppid(), signal.SIGTERM)",
    "reading the environment's secrets": "import os\nraise ValueError(os.environ['A_SECRET_TOKEN'])",
    "reading the parent's secrets": "import os\nraise ValueError(open(f'/proc/{{os.getppid()}}/environ').read())",
    "a thread": "import _thread\n_thread.start_new_thread(print, ())",
}


@pytest.mark.parametrize("harm", HARMS)
def test_harm_harms_nothing_and_scores_zero(harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET_TOKEN", "hush")
    outside = tmp_path / "outside"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        code = HARMS[harm].format(file=str(outside), port=server.getsockname()[1])
        body = textwrap.indent(f"{code}\nreturn 2 * x", "    ")
        free, processes = psutil.virtual_memory().available, set(psutil.Process().children(recursive=True))
        ran = run(Problem(f"def double(x):\n{body}\n", DOUBLES, "double"), SHORT)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert ran.passed == (harm == "nothing")
    assert "hush" not in ran.reason
    assert not outside.exists()
    assert not Path("/x").exists()
    assert set(psutil.Process().children(recursive=True)) == processes
    assert psutil.virtual_memory().available > free - 8 * 2**30


def test_numpy_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    monkeypatch.setattr(jail.sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    assert run(whole("import math\nassert math.gcd(4, 6) == 2")) == Ran(True)
    assert "No module named 'numpy'" in run(whole("import numpy"), SHORT).reason


def test_programs_run_at_once_and_are_answered_in_order() -> None:
    programs = [whole(f"import time; time.sleep(0.2); assert {index} % 3") for index in range(6)]
    assert [ran.passed for ran in run_all(programs, at_once=3)] == [False, True, True, False, True, True]


DATA = Path(__file__).parents[4] / "shared" / "data" / "humaneval" / "HumanEval.jsonl.gz"


@pytest.mark.skipif(not DATA.exists(), reason="HumanEval is not part of the project")
def test_humanevals_own_solutions_pass_and_no_solution_does_not() -> None:
    problems = [json.loads(line) for line in gzip.decompress(DATA.read_bytes()).decode().splitlines()]

    def problem(each: dict[str, str], answer: str) -> Problem:
        return Problem(each["prompt"] + answer, each["test"], each["entry_point"], _definitions(each["prompt"]))

    assert [
        ran.reason for ran in run_all([problem(each, each["canonical_solution"]) for each in problems]) if ran.reason
    ] == []
    assert not any(ran.passed for ran in run_all([problem(each, "    pass\n") for each in problems[:20]]))
