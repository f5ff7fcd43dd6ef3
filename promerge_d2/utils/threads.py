"""Hold a process to one thread, so that processes do not fight for cores or round differently."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import cv2
import torch

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def use_one_thread() -> None:
    """Hold torch and OpenCV of this process to one thread."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Hold this process, and what those that it starts read from the environment, to one thread.

    On leaving, all is as it was. A process started meanwhile still has to call ``use_one_thread``.
    """
    environment = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    threads = torch.get_num_threads(), cv2.getNumThreads()
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    use_one_thread()
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
        for name, value in environment.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
