"""One thing that the doctor looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        status: ``wrong`` where a run would fail, ``note`` where something may surprise.
        name: name of it.
        text: what was found, and for what is wrong what to do.
    """

    status: Status
    name: str
    text: str
