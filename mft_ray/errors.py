"""The one exception that is the user's to mend."""


class UserError(Exception):
    """Something the user gave cannot work.

    The message is one paragraph: what was given, what is allowed, what to do. Entry points print it
    without a traceback and exit with status 2; nothing has been written when it is raised.
    """
