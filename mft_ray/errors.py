"""What can end a run, said in a way that needs no traceback."""


class UserError(Exception):
    """Something the user gave cannot work.

    The message is one paragraph: what was given, what is allowed, what to do. Entry points print it
    without a traceback and exit with status 2; nothing has been written when it is raised.
    """


class RunFailed(RuntimeError):
    """A training run failed on every allowed try. The message holds the worker's own reason.

    Entry points print it without a traceback and exit with status 1; what was finished before is kept.
    """


class Diverged(RunFailed):
    """A training run's loss, scores or masks became NaN: its settings are to blame, and another try would end alike."""


class GivenUp(RunFailed):
    """A training run was ended from outside, whatever its workers did."""
