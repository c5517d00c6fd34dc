"""Whose the files of a run are: some of them can run code when they are read."""

from __future__ import annotations

import os
from pathlib import Path

from mft_ray.errors import UserError

_TRUST = "MFT_RAY_TRUST_RUN"


def check_owner(folder: Path) -> None:
    """Refuse files of somebody else: Tune's state and checkpoints are unpickled, and a pickle can do all that one may.

    Files of root are as good as one's own. ``MFT_RAY_TRUST_RUN=1`` lets any pass.

    Args:
        folder: with the files; there may be none yet.

    Raises:
        UserError: naming the first file and its owner.
    """
    if os.environ.get(_TRUST) == "1":
        return
    trusted = {os.getuid(), 0}
    for path in (folder, *folder.rglob("*")) if folder.exists() else ():
        owner = path.lstat().st_uid
        if owner not in trusted:
            raise UserError(
                f"{path} belongs to user {owner}, and you are user {os.getuid()}. To go on with a run, files of it are "
                "loaded that can run code as you. If you trust who made them, copy the run folder (cp -r, which makes "
                f"it yours) and resume the copy, or set {_TRUST}=1."
            )
