"""What runs inside the jail: a script that imports nothing of ours, see `mft_ray.evaluation.sandbox.runner`.

It reads a request (JSON) from its standard input and becomes two processes, of which each gives up everything but
computing before anything of the request is run: the kernel then refuses whatever is not on a short list (seccomp,
`man 2 seccomp`): files, network, processes and signals are not. One runs the program and answers calls of its entry
point. The other runs the tests, with a stand-in for the entry point, and alone can say how they ended. What crosses
between the two is plain data (`plain.py`), so nothing of the program is ever run, looked at or changed by the tests.

No file can be opened afterwards, so whatever programs import is imported before.
"""

from __future__ import annotations

import builtins
import ctypes
import importlib
import io
import json
import os
import pkgutil
import platform
import resource
import secrets
import signal
import sys
from contextlib import suppress
from typing import Any, BinaryIO, NoReturn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import plain  # type: ignore[import-not-found]  # the file beside this one

del sys.path[0]

MODULES = """
    _strptime abc argparse array ast asyncio base64 binascii bisect bz2 calendar cmath codecs collections
    collections.abc colorsys concurrent.futures.process concurrent.futures.thread configparser contextlib
    contextvars copy csv dataclasses datetime decimal difflib dis doctest email.message email.parser email.policy
    enum fnmatch fractions functools gc getopt gettext glob graphlib gzip hashlib heapq hmac html html.parser
    inspect io ipaddress itertools json keyword linecache locale logging lzma marshal math multiprocessing numbers
    opcode operator optparse os.path pathlib pickle platform pprint queue random re reprlib sched secrets select
    selectors shlex shutil signal socket stat statistics string stringprep struct subprocess symtable sys tempfile
    textwrap threading time timeit token tokenize traceback tracemalloc types typing unicodedata unittest
    unittest.mock urllib.parse uuid warnings weakref xml.etree.ElementTree zipfile zlib zoneinfo numpy numpy.fft
    numpy.linalg numpy.ma numpy.polynomial numpy.random numpy.testing
"""
MOST = 16 * 2**20  # bytes of one call or its answer
HEADER = 12  # bytes before each that say its length
PR_SET_PDEATHSIG = 1

# By architecture: its number to the kernel, then what the program may ask the kernel for.
ALLOWED = {
    "x86_64": (
        0xC000003E,
        {
            "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11,
            "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "readv": 19, "writev": 20,
            "sched_yield": 24, "mremap": 25, "madvise": 28, "nanosleep": 35, "getpid": 39, "exit": 60, "uname": 63,
            "gettimeofday": 96, "getrusage": 98, "sysinfo": 99, "sigaltstack": 131, "gettid": 186, "futex": 202,
            "sched_getaffinity": 204, "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229,
            "clock_nanosleep": 230, "exit_group": 231, "set_robust_list": 273, "getrandom": 318, "rseq": 334,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "close": 57, "lseek": 62, "read": 63, "write": 64, "readv": 65, "writev": 66, "fstat": 80, "exit": 93,
            "exit_group": 94, "futex": 98, "set_robust_list": 99, "nanosleep": 101, "clock_gettime": 113,
            "clock_getres": 114, "clock_nanosleep": 115, "sched_getaffinity": 123, "sched_yield": 124,
            "restart_syscall": 128, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135,
            "rt_sigreturn": 139, "uname": 160, "getrusage": 165, "gettimeofday": 169, "getpid": 172, "gettid": 178,
            "sysinfo": 179, "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226, "madvise": 233,
            "getrandom": 278, "rseq": 293,
        },
    ),
}  # fmt: skip

# Classic BPF (linux/filter.h), seccomp (linux/seccomp.h) and prctl (linux/prctl.h).
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
OFFSET_NUMBER, OFFSET_ARCHITECTURE = 0, 4
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | 1  # with EPERM
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2


class Instruction(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32))


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(Instruction)))


def main() -> None:
    """Serve one request."""
    die_with_parent()
    request = json.loads(sys.stdin.buffer.read())
    if os.getppid() != request["parent"]:  # it was gone before
        os._exit(1)
    for name in MODULES.split():
        with suppress(ImportError):
            importlib.import_module(name)
    for module in pkgutil.iter_modules(importlib.import_module("encodings").__path__):
        with suppress(ImportError):
            importlib.import_module(f"encodings.{module.name}")
    (asked, ask), (answered, answer) = os.pipe(), os.pipe()
    tester = os.getpid()
    if os.fork() == 0:
        os.close(ask)
        os.close(answered)
        die_with_parent()
        if os.getppid() == tester:
            serve(request, os.fdopen(asked, "rb"), os.fdopen(answer, "wb"))
        os._exit(1)
    os.close(asked)
    os.close(answer)
    Tester(request, os.fdopen(ask, "wb"), os.fdopen(answered, "rb")).run()


def die_with_parent() -> None:
    """Be killed when whoever started this process is."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def serve(request: dict[str, Any], calls: BinaryIO, answers: BinaryIO) -> None:
    """Be the process that runs the program: define what it defines, then answer calls until there are no more.

    Args:
        request: whole.
        calls: from the tester.
        answers: to the tester; what else the program may write there is an answer too, and no verdict.
    """
    errors = os.dup(2)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    try:
        limit(request["megabytes"], request["seconds"])
        confine()
    except BaseException as error:
        os.write(errors, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    os.close(errors)
    quiet()
    send(answers, {"confined": True})
    scope: dict[str, Any] = {"__name__": "__main__"}
    send(answers, defined(request["program"], scope))
    while (call := receive(calls)) is not None:
        send(answers, {**answered(scope.get(request["entry_point"]), call), "call": call["call"]})


def defined(program: str, scope: dict[str, Any]) -> dict[str, Any]:
    """Run a program and return what to tell of that."""
    try:
        exec(builtins.compile(program, "<program>", "exec"), scope)
    except BaseException as error:  # SystemExit too: a program that ends before its tests has not passed them
        return raised(error)
    return {}


def answered(function: Any, call: dict[str, Any]) -> dict[str, Any]:
    """Call the entry point and return what to tell of that: a value or an error, and what became of the arguments."""
    try:
        given = plain.decoded(call["arguments"])
        told = {"value": plain.encoded(function(*given[0], **given[1]))}
        became = plain.encoded(given)
        return told if became == call["arguments"] else {**told, "arguments": became}
    except BaseException as error:
        return raised(error)


def raised(error: BaseException) -> dict[str, Any]:
    """Return what to tell of an error: the names of its own and its bases' types, and its text."""
    try:
        text = str(error)[:500]
    except BaseException:
        text = ""
    return {"raised": [kind.__name__ for kind in type(error).__mro__], "text": text}


class Tester:
    """The process that runs the tests.

    Args:
        request: whole.
        calls: to the program.
        answers: from the program: nothing that comes there is believed to be more than data.
    """

    def __init__(self, request: dict[str, Any], calls: BinaryIO, answers: BinaryIO) -> None:
        self.request, self.calls, self.answers = request, calls, answers
        self.write = os.write

    def run(self) -> NoReturn:
        """Run the tests and say how they ended."""
        limit(self.request["megabytes"], self.request["seconds"])
        confine()
        quiet()
        if self.answer() != {"confined": True}:
            os._exit(1)  # it will have said why
        self.write(1, b"confined\n")
        told = self.answer()
        if "raised" in told:
            self.fail(f"{told['raised'][0]}: {told['text']}")
        entry_point = self.request["entry_point"]
        self.candidate.__func__.__name__ = entry_point  # type: ignore[attr-defined]
        scope: dict[str, Any] = {"__name__": "__main__"}
        try:
            # What tests use beside the entry point. Never the program.
            exec(builtins.compile(self.request["given"], "<given>", "exec"), scope)
            scope[entry_point] = self.candidate
            exec(builtins.compile(self.request["tests"], "<tests>", "exec"), scope)
            scope["check"](self.candidate)
        except BaseException as error:
            self.fail(f"{type(error).__name__}: {error}")
        self.write(1, b"passed")
        os._exit(0)

    def candidate(self, *arguments: Any, **named: Any) -> Any:
        """Stand in for the entry point."""
        number = secrets.token_hex(8)
        try:
            asked = {"call": number, "arguments": plain.encoded([arguments, named])}
        except plain.NotPlain as error:
            self.fail(f"the tests call the program with {error}")
        send(self.calls, asked)
        told = self.answer()
        if told.get("call") != number:
            self.fail("the program answered a call that was not made")
        if "raised" in told:
            raise self.error(told["raised"], told["text"])
        try:
            if "arguments" in told:
                became, _ = plain.decoded(told["arguments"])
                for argument, now in zip(arguments, became, strict=True):
                    plain.change(argument, now)
            return plain.decoded(told["value"])
        except Exception as error:
            self.fail(f"the program's answer is no plain data: {error}")

    def answer(self) -> dict[str, Any]:
        """Return what the program says next."""
        try:
            told = receive(self.answers)
        except (ValueError, RecursionError, MemoryError):
            self.fail("the program's answer cannot be read")
        if told is None:
            self.fail("the program ended before its tests did")
        return told

    def error(self, names: list[str], text: str) -> Exception:
        """Return the error that the program raised, as the built-in type that it is or comes from."""
        for name in names:
            kind = getattr(builtins, str(name), None)
            if isinstance(kind, type) and issubclass(kind, BaseException):
                if not issubclass(kind, Exception):
                    break
                with suppress(TypeError):  # a UnicodeError's takes five
                    return kind(str(text))
        self.fail(f"{names[0]}: {text}")

    def fail(self, reason: str) -> NoReturn:
        """Say why the tests have not passed, at once: no test can take that back."""
        self.write(1, reason[:500].encode(errors="replace"))
        os._exit(1)


def quiet() -> None:
    """Let what is printed go nowhere, and nothing be read."""
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), io.StringIO(), io.StringIO()


def send(pipe: BinaryIO, content: dict[str, Any]) -> None:
    """Write one message."""
    text = json.dumps(content).encode()
    if len(text) > MOST:
        number = {"call": content["call"]} if "call" in content else {}
        text = json.dumps({**number, "raised": ["MemoryError"], "text": f"an answer of {len(text):,} bytes"}).encode()
    pipe.write(b"%0*d" % (HEADER, len(text)) + text)
    pipe.flush()


def receive(pipe: BinaryIO) -> dict[str, Any] | None:
    """Read one message; None if there is none.

    Raises:
        ValueError: it is no message.
    """
    header = pipe.read(HEADER)
    if len(header) < HEADER:
        return None
    length = int(header) if header.isdigit() else MOST + 1
    if length > MOST:
        raise ValueError("it is too long")
    text = pipe.read(length)
    content = json.loads(text) if len(text) == length else None
    if content is not None and not isinstance(content, dict):
        raise ValueError("it is no message")
    return content


def limit(megabytes: int, seconds: float) -> None:
    """Limit memory and processor time, and allow no file to grow."""
    cpu = int(seconds) + 1
    limits = {
        resource.RLIMIT_AS: megabytes * 2**20,
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


def confine() -> None:
    """Give up all but the allowed system calls, for good.

    Raises:
        OSError: the kernel cannot do it; nothing must be run then.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise OSError("another thread runs, which would not be confined")
    architecture, calls = ALLOWED[platform.machine()]
    rules = [
        Instruction(LOAD, 0, 0, OFFSET_ARCHITECTURE),
        Instruction(JUMP_IF_EQUAL, 1, 0, architecture),
        Instruction(RETURN, 0, 0, KILL),
        Instruction(LOAD, 0, 0, OFFSET_NUMBER),
    ]
    for number in calls.values():
        rules += [Instruction(JUMP_IF_EQUAL, 0, 1, number), Instruction(RETURN, 0, 0, ALLOW)]
    rules.append(Instruction(RETURN, 0, 0, REFUSE))
    program = Program(len(rules), (Instruction * len(rules))(*rules))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "the kernel does not confine processes (seccomp)")


if __name__ == "__main__":
    main()
