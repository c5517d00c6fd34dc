"""What a service has been sent of a search, so that a resumed one sends nothing twice."""

from __future__ import annotations

import secrets
from pathlib import Path

from pydantic import Field

from mft_ray.runs.records import FileRecord, Record
from mft_ray.utils.console import log_warning
from mft_ray.utils.files import Damaged


class SentRun(Record):
    """What has been sent of one run.

    Attributes:
        run_id: identifier of the run on the service.
        step: optimizer step of the last evaluation that was sent; -1 before the first.
        ended: whether its end was sent.
    """

    run_id: str
    step: int = -1
    ended: bool = False


class Sent(FileRecord):
    """work/tracking/SERVICE.json.

    Attributes:
        target: where it was sent: what is sent elsewhere is sent from the start.
        token: part of the group's name and of runs' identifiers; no other search has it.
        runs: by name.
        verdict: digest of what was sent of the verdict; empty before that.
    """

    target: str
    token: str = Field(default_factory=lambda: secrets.token_hex(4))
    runs: dict[str, SentRun] = Field(default_factory=dict)
    verdict: str = ""

    @classmethod
    def open(cls, path: Path, target: str) -> Sent:
        """Read what was sent to a target, nothing if that was another one.

        Args:
            path: path of the file.
            target: where things are sent now.
        """
        try:
            found = cls.load(path)
        except FileNotFoundError:
            return cls(target=target)
        except Damaged as error:
            log_warning(f"{error}: what was sent to {target.strip('/')} is sent again, as another group")
            return cls(target=target)
        return found if found.target == target else cls(target=target)
