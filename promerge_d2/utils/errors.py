"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """Input that was refused, in words that say what was wrong, where, and what to do.

    Tools print it as one message without a traceback and exit with ``exit_code``.
    """

    exit_code = 3
