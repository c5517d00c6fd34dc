"""What runs inside the jail. A script of its own, which imports nothing of ours: see `mft_ray.evaluation.jail`.

It reads a request (JSON) from its standard input, gives up everything but computing, and runs the program. The kernel
then refuses whatever is not on a short list (seccomp, `man 2 seccomp`): files, network, processes and signals are not.
What programs commonly import is imported before.
"""

from __future__ import annotations

import builtins
import ctypes
import importlib
import io
import json
import os
import platform
import resource
import sys
from contextlib import suppress

MODULES = """
    array bisect calendar cmath collections collections.abc contextlib copy dataclasses datetime decimal enum fractions
    functools hashlib heapq inspect io itertools json math numbers operator os.path pprint queue random re statistics
    string struct textwrap time traceback typing unicodedata uuid zlib encodings.ascii encodings.idna encodings.latin_1
    encodings.unicode_escape encodings.utf_8 encodings.utf_16 numpy
"""

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
    request = json.loads(sys.stdin.buffer.read())
    answer = os.write  # the program may put something else in its place
    for name in MODULES.split():
        with suppress(ImportError):
            importlib.import_module(name)
    limit(request["megabytes"], request["seconds"])
    confine()
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), io.StringIO(), io.StringIO()
    answer(1, b"confined\n")
    try:
        exec(builtins.compile(request["program"], "<program>", "exec"), {"__name__": "__main__"})
    except BaseException as error:  # SystemExit too: a program that ends before its tests have not passed them
        answer(1, f"{type(error).__name__}: {error}"[:500].encode(errors="replace"))
        os._exit(1)
    answer(1, request["token"].encode())
    os._exit(0)


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
