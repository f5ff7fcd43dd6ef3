"""Exit codes of the tools, and the one exception that means "the user can mend this"."""

EXIT_OK = 0  # everything was processed
EXIT_NOT_FINISHED = 1  # stopped before the end: interrupted, or an unexpected error
EXIT_FAILURES = 2  # finished; some inputs failed and were named
EXIT_REFUSED = 3  # the request itself was refused; nothing was done


class UserError(Exception):
    """Input that was refused, in words that say what was wrong, where, and what to do.

    Tools print it as one message without a traceback and exit with ``exit_code``.
    """

    exit_code = EXIT_REFUSED
