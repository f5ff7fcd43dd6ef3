"""What workers are given to die of; it imports nothing slow, so that they start at once."""

import os
import signal
import time


def die_once(mark, number):
    """Killed if the file ``mark`` is not there yet; else the number."""
    if os.path.exists(mark):
        return number
    with open(mark, "w", encoding="ascii"):
        signal.raise_signal(signal.SIGKILL)


def sleep(seconds, number):
    time.sleep(seconds)
    return number


def begin_once(mark):
    """Lets the first process begin, and no other."""
    if os.path.exists(mark):
        os._exit(7)
    with open(mark, "w", encoding="ascii"):
        pass
