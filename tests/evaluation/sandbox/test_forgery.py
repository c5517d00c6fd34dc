"""Programs that would rather be told right than be right, and what they answer that is no answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil  # type: ignore[import-untyped]
import pytest

from mft_ray.evaluation.sandbox.runner import Limits, Problem, Ran, run

SHORT = Limits(seconds=3, megabytes=768)
TESTS = """
import math
import numpy as np

def check(candidate):
    assert candidate(2) == 4
    assert math.isclose(candidate(0.5), 1.0)
    assert np.allclose(candidate(3), 6)
    assert candidate([1]) == [1, 1]
"""
LIAR = """
class Liar(%s):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
    def __float__(self): return 1.0
"""
# Each does something wrong before it gives an answer that is wrong, if it ever does.
FORGERIES = {
    "a frame walk": """
        import sys
        def f(x):
            frame = sys._getframe()
            while frame:
                for name, value in list(frame.f_locals.items()) + list(frame.f_globals.items()):
                    if isinstance(value, dict) and 'tests' in value: value['tests'] = 'def check(c): pass'
                    if name in ('check', 'answers', 'calls'): frame.f_globals['passed'] = True
                frame = frame.f_back
            return 0
    """,
    "the collector's objects": """
        import gc, types
        def f(x):
            for each in gc.get_objects():
                if isinstance(each, types.FunctionType) and each.__name__ in ('check', 'run', 'fail', 'candidate'):
                    each.__code__ = (lambda *a, **k: None).__code__
            return 0
    """,
    "a trace that jumps over asserts": """
        import sys
        def jump(frame, event, argument):
            frame.f_trace_lines = True
            if event == 'line':
                try: frame.f_lineno += 1
                except ValueError: pass
            return jump
        sys.settrace(jump)
        def f(x): return 0
    """,
    "a profile function": """
        import sys
        sys.setprofile(lambda *a: None)
        def f(x): return 0
    """,
    "an object that is equal to all": LIAR % "object" + "def f(x): return Liar()",
    "an integer that is equal to all": LIAR % "int" + "def f(x): return Liar(0)",
    "a list that is equal to all": LIAR % "list" + "def f(x): return Liar()",
    "a number that is equal to all": LIAR % "float" + "def f(x): return Liar(0.0)",
    "a module's check": """
        import sys
        sys.modules['__main__'].check = lambda candidate: None
        def check(candidate): pass
        def f(x): return 0
    """,
    "other built-ins": """
        import builtins
        builtins.AssertionError = type('Passed', (Exception,), {})
        builtins.compile = lambda *a, **k: 'pass'
        builtins.exec = lambda *a, **k: None
        builtins.isinstance = lambda *a: True
        def f(x): return 0
    """,
    "other modules": """
        import math, json, numpy
        math.isclose = numpy.allclose = lambda *a, **k: True
        json.dumps = lambda *a, **k: '{"passed": true}'
        def f(x): return 0
    """,
    "every descriptor": """
        import os
        for number in range(256):
            try: os.write(number, b'passed')
            except OSError: pass
        def f(x): return 0
    """,
    "every descriptor, when called": """
        import os
        def f(x):
            for number in range(256):
                try: os.write(number, b'confined\\npassed')
                except OSError: pass
            os._exit(0)
    """,
    "an end in time": "import os\nos._exit(0)",
    "an end in order": "import sys\ndef f(x): sys.exit(0)",
    "an end of its own": "def f(x): raise KeyboardInterrupt",
    "what is done at the end": """
        import atexit, os
        atexit.register(lambda: os.write(1, b'passed'))
        class Last:
            def __del__(self): os.write(1, b'passed')
        last = Last()
        def f(x): return 0
    """,
    "answers before calls": """
        import os
        body = b'{"value": ["i", "4"], "call": "0"}'
        for number in range(3, 64):
            for _ in range(9):
                try: os.write(number, b'%012d' % len(body) + body)
                except OSError: pass
        def f(x): return 0
    """,
    "an answer with a verdict": """
        import os
        def f(x):
            body = b'{"passed": true, "value": null}'
            for number in range(3, 64):
                try: os.write(number, b'%012d' % len(body) + body)
                except OSError: pass
            return 0
    """,
    "memory that is not its own": """
        import ctypes
        def f(x):
            ctypes.memset(id(AssertionError), 0, 64)
            return 0
    """,
    "a signal": """
        import os, signal
        def f(x):
            try: os.kill(os.getppid(), signal.SIGSTOP)
            except OSError: pass
            return 0
    """,
    "an exception that is caught": "def f(x): raise AssertionError('passed')",
    "a name that is the tests'": "candidate = check = lambda *a: None\ndef f(x): return 0",
    "a change of the question": """
        def f(x):
            if isinstance(x, list): x.clear()
            return 0
    """,
}
RIGHT = "def f(x):\n    return x + x"


def problem(program: str) -> Problem:
    return Problem(textwrap.dedent(program), TESTS, "f")


def test_what_is_right_passes() -> None:
    assert run(problem(RIGHT)) == Ran(True)
    assert not run(problem("def f(x):\n    return 3 * x"), SHORT).passed


@pytest.mark.parametrize("forgery", FORGERIES)
def test_no_forgery_passes(forgery: str) -> None:
    assert not run(problem(FORGERIES[forgery]), SHORT).passed


HOSTILE = {
    "too much": ("def f(x): return 'x' * 2**25", "an answer of 33,"),
    "too deep": ("def f(x):\n    r = []\n    for _ in range(10**5): r = [r]\n    return r", "too deep"),
    "without end": ("import itertools\ndef f(x): return itertools.count()", "an iterator over more than 2,000,000"),
    "a function": ("def f(x): return f", "a value of type function, which is no plain data"),
    "an encoding that hangs": (
        "class A(int):\n    def __int__(self):\n        while True: pass\ndef f(x): return A()",
        "it took longer than 3 s",
    ),
    "no answer": ("def f(x):\n    while True: pass", "it took longer than 3 s"),
    "a broken message": (
        "import os\ndef f(x):\n    for n in range(3, 64):\n        try: os.write(n, b'x' * 99)\n"
        "        except OSError: pass",
        "the program's answer cannot be read",
    ),
    "nothing of that name": ("def g(x): return x", "'NoneType' object is not callable"),
    "no program": ("def f(:", "SyntaxError"),
}


@pytest.mark.parametrize("answer", HOSTILE)
def test_what_is_no_answer_is_said(answer: str) -> None:
    program, reason = HOSTILE[answer]
    # A slow machine needs longer to come to the two-millionth of something.
    limits = SHORT if "took longer" in reason else Limits(seconds=30, megabytes=SHORT.megabytes)
    began = time.monotonic()
    ran = run(problem(program), limits)
    assert not ran.passed
    assert reason in ran.reason
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("10**5000", "10**5000"),
        ("[float('inf'), -0.0, 1e-320, 1j]", "[float('inf'), -0.0, 1e-320, 1j]"),
        ("{1: (2, {3}), (4,): frozenset([b'5'])}", "{1: (2, {3}), (4,): frozenset([b'5'])}"),
        ("'\\ud800\\0\\n€'", "'\\ud800\\0\\n€'"),
        ("collections.Counter('aab')", "{'a': 2, 'b': 1}"),
        ("collections.OrderedDict(a=1)", "{'a': 1}"),
        ("collections.namedtuple('P', 'x')(3)", "(3,)"),
        ("np.float64(0.5)", "0.5"),
        ("np.bool_(True)", "True"),
        ("decimal.Decimal('1.10')", "decimal.Decimal('1.1')"),
        ("fractions.Fraction(1, 3)", "fractions.Fraction(1, 3)"),
        ("range(3)", "range(3)"),
        ("{'a': 1}.keys()", "{'a'}"),
        ("bytearray(b'x')", "b'x'"),
    ],
)
def test_values_cross_as_they_are(answer: str, expected: str) -> None:
    imports = "import collections, decimal, fractions\nimport numpy as np\n"
    tests = f"{imports}def check(candidate):\n    assert candidate() == {expected}"
    assert run(Problem(f"{imports}def f(): return {answer}", tests, "f")) == Ran(True)


def test_arrays_iterators_errors_and_changed_arguments_are_as_in_one_process() -> None:
    program = """
        import numpy as np
        class Own(ValueError): pass
        def f(kind, *given, **named):
            if kind == 'array': return np.arange(6, dtype='int16').reshape(2, 3)
            if kind == 'iterator': return (each for each in 'ab')
            if kind == 'error': raise Own('mine')
            if kind == 'change': given[0].append(named['value'])
    """
    tests = """
        def check(candidate):
            assert (candidate('array') == [[0, 1, 2], [3, 4, 5]]).all() and candidate('array').dtype == 'int16'
            assert list(candidate('iterator')) == ['a', 'b']
            try: candidate('error')
            except ValueError as error: assert str(error) == 'mine'
            else: assert False
            held = [1]
            assert candidate('change', held, value={2: 3}) is None and held == [1, {2: 3}]
            assert candidate.__name__ == 'f' and helper(1) == 2
    """
    given = "def helper(x):\n    return 2 * x\n\ndef f(kind):\n    '''A stub.'''\n"
    assert run(Problem(textwrap.dedent(program), textwrap.dedent(tests), "f", given)) == Ran(True)


KILLED = """
import sys
from mft_ray.evaluation.sandbox.runner import Limits, Problem, run
print("ready", flush=True)
run(Problem("def f():\\n    while True: pass", "def check(c): c()", "f"), Limits(seconds=600))
"""


def test_nothing_outlives_a_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    assert parent.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    jailed: list[psutil.Process] = []
    while len(jailed) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        jailed = psutil.Process(parent.pid).children(recursive=True)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(10)
    while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in jailed):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_closed_outputs_are_no_reason_to_wait() -> None:
    began = time.monotonic()
    program = "import os, time\ndef f(x):\n    os.closerange(0, 256)\n    time.sleep(1000)"
    ran = run(problem(program), SHORT)
    assert not ran.passed
    assert time.monotonic() - began < 20
