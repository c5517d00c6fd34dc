"""The same error in one trial after another: not bad luck, and no use to go on with."""

from __future__ import annotations

import re
from pathlib import Path

from mft_ray.errors import told

# Numbers, addresses, and names with digits in them, such as a trial's id and its folder: those differ anyhow.
_NUMBERED = re.compile(r"[\w.+-]*\d[\w.+-]*")


class RepeatedErrors:
    """Counts the trials of a session that failed with the same error, raised by code.

    A worker that was lost, too little memory, and numbers that became NaN do not count: of these the next trial may
    be free.

    Attributes:
        limit: so many trials with the same error are enough; None never are.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self._trials: dict[str, set[str]] = {}

    def note(self, trial_id: str, reason: str, traceback: Path | None) -> str | None:
        """Note the error, raised by code, with which a trial failed.

        Args:
            trial_id: name of the trial.
            reason: the error's type and text in one line.
            traceback: file that holds the traceback; None where the reason says it all.

        Returns:
            Why the search is to end; None where it is not.
        """
        if self.limit is None:
            return None
        trials = self._trials.setdefault(_NUMBERED.sub("#", reason), set())
        trials.add(trial_id)
        if len(trials) < self.limit:
            return None
        return (
            f"{len(trials)} trials have failed with the same error, so that the others would too: "
            f"{told(reason, traceback).rstrip('.')}. The search has ended (search.same_errors is {self.limit}; null "
            "never ends it); what was finished is kept."
        )
