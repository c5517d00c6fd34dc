"""What a person names a run by: a folder, an address in an object store, or the copy of one on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from mft_ray.store.address import Address, is_address
from mft_ray.store.scratch import Scratch


def scratch_of(given: str | os.PathLike[str] | None, setting: str = "RUN") -> Scratch | None:
    """Return the copy of a run that is in an object store; None for a run that is in a folder.

    Args:
        given: address, folder, or None.
        setting: that names it.

    Raises:
        UserError: it is an address that cannot be used.
    """
    if given is None:
        return None
    if is_address(given):
        return Scratch(Address.parse(os.fspath(given), setting))
    return Scratch.around(Path(given).expanduser())


def place_of(given: str | os.PathLike[str]) -> Path:
    """Return the folder on this machine in which a run is worked on. Nothing is looked at or carried.

    Args:
        given: address or folder.

    Raises:
        UserError: it is an address that cannot be used.
    """
    scratch = scratch_of(given)
    return Path(given).expanduser() if scratch is None else scratch.run


def named(folder: Path) -> str:
    """Return what a person is to call a run: its address where it has one.

    Args:
        folder: run folder.
    """
    scratch = Scratch.around(folder)
    return str(folder if scratch is None else scratch.address)
