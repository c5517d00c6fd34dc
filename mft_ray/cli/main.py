"""`mft-ray`, also `python -m mft_ray`: which sub-command is meant, and how a mistake or a failure ends."""

from __future__ import annotations

import argparse
import atexit
import errno
import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import NoReturn

from mft_ray import __version__
from mft_ray.cli.options import Command
from mft_ray.errors import AGAIN, OutOfTime, RunFailed, UserError
from mft_ray.store.address import is_address
from mft_ray.utils.console import command_output
from mft_ray.utils.files import Damaged, json_text

# The sub-commands, as help lists them, by the folder that they are in.
PLACES = {
    "runs": ("tune", "compare", "experiment", "dashboard", "enqueue", "stop", "pick", "report"),
    "models": ("train", "evaluate", "score", "export", "push", "inspect"),
    "setup": ("init", "plan", "doctor"),
}
_FOLDERS = ("--out", "--dry-run")  # options that name where something is written
_INTERRUPTED = 130  # as a shell has it
NAMES = tuple(name for names in PLACES.values() for name in names)
# What a path can be that a user gave.
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


def command(name: str) -> Command:
    """Return a sub-command by its name."""
    [place] = [place for place, names in PLACES.items() if name in names]
    found: Command = importlib.import_module(f"mft_ray.cli.{place}.{name}").COMMAND
    return found


def parser(names: Sequence[str] = NAMES) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Args:
        names: sub-commands that it is to know.
    """
    whole = argparse.ArgumentParser(
        prog="mft-ray",
        description="Mask Fine-Tuning on Ray: learn which weights of a fine-tuned model to switch off, and find out "
        "whether that made it better.",
        epilog="Each has its own --help. `mft-ray --print-completion bash` (zsh, tcsh) completes them in a shell.",
    )
    whole.add_argument("--version", action="version", version=f"mft_ray {__version__}")
    _add_completion(whole)
    each = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in names:
        known = command(name)
        one = each.add_parser(
            name,
            help=known.summary,
            description=known.description,
            epilog=f"examples:\n{textwrap.indent(textwrap.dedent(known.examples).strip(), '  ')}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        known.add_options(one)
        one.set_defaults(run=known.run)
    return whole


def main(given: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        given: arguments of the command line; None takes this process's.

    Returns:
        Exit status: 0, 2 for a user's mistake, 1 for a failed run, 130 for Ctrl-C, 75 for SIGUSR1: time is up.
    """
    given = sys.argv[1:] if given is None else given
    # cluster/local.py submits a job from this folder; relative paths mean what they meant there.
    if folder := os.environ.get("MFT_RAY_LAUNCH_DIR"):
        os.chdir(folder)
    # One sub-command is loaded, where it is clear which.
    known = given[:1] if given and given[0] in NAMES else NAMES
    return ended(lambda: _run(parser(known), given))


def run(given: Sequence[str] | None = None) -> NoReturn:
    """Do what `main` does, and end this process with its status.

    Args:
        given: arguments of the command line; None takes this process's.
    """
    status = main(given)
    if status in (_INTERRUPTED, AGAIN):
        # A thread may still wait for workers of a Ray that this process has left: as the interpreter is taken down it
        # crashes in Ray's library, and the status would say so, not how the run ended.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def ended(work: Callable[[], None]) -> int:
    """Do some work and return its exit status; a mistake or a failure is one line, without a traceback."""
    try:
        work()
    except UserError as error:
        return _said(f"error: {error}", 2)
    except RunFailed as error:
        return _said(f"failed: {error.told}", 1)
    except Damaged as error:
        return _said(
            f"failed: {error}. Put a copy of it back, or delete it: --resume RUN makes again what can be made again", 1
        )
    except OSError as error:
        if error.errno in _UNUSABLE and error.filename:
            what = f"{error.filename} cannot be used: {error.strerror}"
            return _said(f"error: {what}. Give a path that can be read and written.", 2)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _said(f"failed: {error}. Free space there; a search then goes on with --resume RUN", 1)
    except OutOfTime:
        return _said("out of time", AGAIN)
    except KeyboardInterrupt:
        return _said("interrupted", _INTERRUPTED)
    return 0


def _run(whole: argparse.ArgumentParser, given: Sequence[str]) -> None:
    _check_given(given)
    carry_out(whole.parse_args(given))


def carry_out(options: argparse.Namespace) -> None:
    """Run the sub-command that was given, print as ``--quiet`` and ``--json`` ask, and the document of the latter last.

    Args:
        options: as the `parser` returns them.
    """
    wanted = bool(getattr(options, "json", False))
    with command_output(bool(getattr(options, "quiet", False)), wanted):
        document = options.run(options)
    if wanted:
        print(json_text(document), end="", flush=True)


def _said(text: str, status: int) -> int:
    print(text, file=sys.stderr, flush=True)
    return status


def _add_completion(whole: argparse.ArgumentParser) -> None:
    import shtab

    shtab.add_argument_to(whole, "--print-completion", help="print a completion script for a shell")


def _check_given(arguments: Sequence[str]) -> None:
    """Refuse empty text, which a shell makes of a variable that is not set, and Python a path to this folder."""
    for before, given in zip(["", *arguments], arguments, strict=False):
        if not given.strip():
            what = before if before.startswith("--") else "An argument"
            raise UserError(f"{what} is empty text. Give what it names, or leave it out.")
        if given.startswith("--") and given.endswith("=") and given.count("=") == 1:
            raise UserError(f"{given[:-1]} is empty text. Give what it names, or leave it out.")
        option, _, value = given.partition("=") if given.startswith("--") else (before, "", given)
        if option in _FOLDERS and is_address(value):
            raise UserError(
                f"{option} is {value}, and only a run can be in an object store: run.dir of mft-ray tune, compare and "
                "experiment. Give a folder."
            )
