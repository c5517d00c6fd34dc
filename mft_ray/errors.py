"""What can end a run, said in a way that needs no traceback."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """Something the user gave cannot work.

    The message is one paragraph: what was given, what is allowed, what to do. Entry points print it
    without a traceback and exit with status 2; nothing has been written when it is raised.
    """


class OutOfTime(KeyboardInterrupt):
    """Whoever lends the machine takes it back soon, and has said so with SIGUSR1; the same can go on later.

    What is interrupted by Ctrl-C is interrupted by this. Entry points exit with `AGAIN`.
    """


AGAIN = 75  # EX_TEMPFAIL of sysexits.h, which a batch script can tell from a failure


class RunFailed(RuntimeError):
    """A training run failed on every allowed try. The message holds the worker's own reason.

    Entry points print it without a traceback and exit with status 1; what was finished before is kept.

    Attributes:
        traceback: the worker's own, where code raised an error; None where none did, or the reason says it all.
        traceback_file: file that holds the traceback; None as long as none does.
        raised: whether code raised the error, so that the same settings and data are likely to raise it again.
    """

    traceback: str | None = None
    traceback_file: Path | None = None
    raised: bool = False

    def again(self, message: str) -> RunFailed:
        """Return the same failure with another message.

        Args:
            message: holds this one's.
        """
        error = RunFailed(message)
        error.traceback, error.traceback_file, error.raised = self.traceback, self.traceback_file, self.raised
        return error

    @property
    def told(self) -> str:
        """The message, and where the traceback is."""
        return told(str(self), self.traceback_file)


def told(reason: str, traceback: Path | None) -> str:
    """Return the reason of a failure in a line, with where its traceback is.

    Args:
        reason: in words.
        traceback: file that holds it; None where there is none.
    """
    return f"{reason.rstrip('.')} (traceback: {traceback})" if traceback else reason


class Diverged(RunFailed):
    """A training run's loss, scores or masks became NaN: its settings are to blame, and another try would end alike."""


class GivenUp(RunFailed):
    """A training run was ended from outside, whatever its workers did."""
