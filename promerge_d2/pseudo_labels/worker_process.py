"""What runs in a worker process; it imports nothing slow itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]


def serve_calls(pipe: Connection, initializer: Callable[[], object]) -> None:
    """Call the functions that come through a pipe, until it ends.

    Args:
        pipe: gives functions without arguments, takes ``(returned, value)``: what each returned
            or raised. Before the first call it takes None.
        initializer: called first.
    """
    initializer()
    with contextlib.suppress(EOFError, OSError):
        pipe.send(None)  # ready
        while True:
            function = pipe.recv()
            try:
                outcome = True, function()
            except Exception as error:  # noqa: BLE001 - raised again where the result is taken
                outcome = False, ExceptionWithTraceback(error, error.__traceback__)
            try:
                pipe.send(outcome)
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001 - anybody's way of pickling
                pipe.send((False, ExceptionWithTraceback(error, error.__traceback__)))
