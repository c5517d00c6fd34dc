"""What a trial has to say between two results: that its workers are started anew, and why."""

from __future__ import annotations

import json
from pathlib import Path

_NAME = "restarts.jsonl"


def note_restart(trial: Path, reason: str) -> None:
    """Add a reason to those that a trial's workers were started anew for.

    Args:
        trial: folder of the trial.
        reason: in one line.
    """
    with (trial / _NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"restart": reason}) + "\n")


class Notices:
    """Hands out each trial's notices once; those from before this object are old."""

    def __init__(self) -> None:
        self._told: dict[Path, int] = {}

    def begin(self, trial: Path) -> None:
        """Take what there is of a trial for told, if it is not known yet.

        Args:
            trial: folder of the trial.
        """
        self._told.setdefault(trial, len(_lines(trial)))

    def new(self, trial: Path) -> list[str]:
        """Return the reasons that have come since they were last asked for.

        Args:
            trial: folder of the trial.
        """
        lines = _lines(trial)
        told, self._told[trial] = self._told.get(trial, 0), len(lines)
        return [str(json.loads(line)["restart"]) for line in lines[told:]]


def _lines(trial: Path) -> list[str]:
    path = trial / _NAME
    # The last line may be half written.
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
