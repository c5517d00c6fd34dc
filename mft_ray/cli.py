"""What all entry points share: --config and --set, and how a user's mistake ends."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from mft_ray.config import Config, load_config
from mft_ray.errors import RunFailed, UserError
from mft_ray.utils.files import Damaged

# What a path can be that a user gave.
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


def parser(description: str, examples: str = "") -> argparse.ArgumentParser:
    """Return an argument parser whose help shows examples."""
    entry = getattr(sys.modules["__main__"], "__spec__", None)
    return argparse.ArgumentParser(
        # Python before 3.14 would say tune.py, which cannot be called.
        prog=f"python -m {entry.name}" if entry else None,
        description=description,
        epilog=f"examples:\n{textwrap.indent(textwrap.dedent(examples).strip(), '  ')}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config(arguments: argparse.ArgumentParser, required: bool = True) -> None:
    """Add ``--config FILE`` and ``--set path=value``."""
    arguments.add_argument("--config", metavar="FILE", required=required, help="YAML file of settings")
    arguments.add_argument(
        "--set",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="change one setting, such as search.trials=4; may be repeated",
    )


def add_run(arguments: argparse.ArgumentParser) -> None:
    """Add what a long command takes: ``--config`` for a new run, ``--resume`` for one to go on with, and ``--set``."""
    add_config(arguments, required=False)
    arguments.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with an interrupted run, or add to a finished one (--set search.trials=32). With --set, settings "
        "change that nothing was made with yet, and those that results do not depend on; others are refused by name",
    )


def read_run(options: argparse.Namespace) -> tuple[Config | None, str | None]:
    """Return the configuration of a new run, or the folder of one to go on with, and its changed configuration.

    Raises:
        UserError: both are given, or neither.
    """
    if (options.config is None) == (options.resume is None):
        raise UserError("Give either --config FILE for a new run or --resume RUN for an interrupted one.")
    if options.resume is None:
        return read_config(options), None
    own = Path(options.resume).expanduser() / "config.yaml"
    return (load_config(own, options.overrides) if options.overrides else None), options.resume


def read_config(options: argparse.Namespace) -> Config:
    """Return the configuration that the options name."""
    return load_config(options.config, options.overrides)


def run(main: Callable[[], None]) -> NoReturn:
    """Run an entry point and exit: 0, 2 for a user's mistake, 1 for a failed run, 130 for Ctrl-C; no traceback."""
    # cluster/local.py submits a job from this folder; relative paths mean what they meant there.
    if folder := os.environ.get("MFT_RAY_LAUNCH_DIR"):
        os.chdir(folder)
    try:
        _check_given(sys.argv[1:])
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except RunFailed as error:
        print(f"failed: {error.told}", file=sys.stderr, flush=True)
        sys.exit(1)
    except Damaged as error:
        print(
            f"failed: {error}. Put a copy of it back, or delete it: --resume RUN makes again what can be made again",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(1)
    except OSError as error:
        if error.errno in _UNUSABLE and error.filename:
            print(
                f"error: {error.filename} cannot be used: {error.strerror}. Give a path that can be read and written.",
                file=sys.stderr,
                flush=True,
            )
            sys.exit(2)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"failed: {error}. Free space there; a search then goes on with --resume RUN", file=sys.stderr, flush=True
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    sys.exit(0)


def _check_given(arguments: Sequence[str]) -> None:
    """Refuse empty text, which a shell makes of a variable that is not set, and Python a path to this folder."""
    for before, given in zip(["", *arguments], arguments, strict=False):
        if not given.strip():
            what = before if before.startswith("--") else "An argument"
            raise UserError(f"{what} is empty text. Give what it names, or leave it out.")
        if given.startswith("--") and given.endswith("=") and given.count("=") == 1:
            raise UserError(f"{given[:-1]} is empty text. Give what it names, or leave it out.")
