"""How everything here is measured: fresh processes of one thread, medians, spread, memory.

A figure is a number under a dotted name; its spread stands under the same name + ``.iqr``.

Shape letters: N images, R repeats. Seconds are wall-clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import platform
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from importlib import metadata
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from promerge_d2.utils.errors import UserError
from promerge_d2.utils.threads import one_thread, use_one_thread

DRAWS = 1000  # of the bootstrap
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Samples:
    """Repeated measurements of the same thing on several images.

    Attributes:
        values: (N, R) float64; R may be 1.
    """

    values: np.ndarray

    def __getitem__(self, images: slice | list[int]) -> Samples:
        """Pick the samples of some of the images."""
        return Samples(self.values[images])

    def __add__(self, other: Samples) -> Samples:
        """Add two parts of the work on the same images; each part keeps its spread.

        A part with fewer repeats is repeated in turn until both have as many.
        """
        repeats = max(self.values.shape[1], other.values.shape[1])
        first, second = (
            np.resize(part.values.T, (repeats, len(part.values))).T for part in (self, other)
        )
        return Samples(first + second)


def mean(values: np.ndarray) -> float:
    """Return the mean over images."""
    return float(values.mean())


def ratio(slow: np.ndarray, fast: np.ndarray) -> float:
    """Return the ratio of the sums over the same images."""
    return float(slow.sum() / fast.sum())


def estimate(
    statistic: Callable[..., float], *samples: Samples, seed: int = 0
) -> tuple[float, float]:
    """Compute a figure and its spread.

    The figure is ``statistic`` of each image's median over its repeats. The spread is the
    interquartile range of the same statistic over ``DRAWS`` bootstrap draws: images with
    replacement (the same for all samples), and for each image one of its repeats.

    Args:
        statistic: takes one (N,) array for each of ``samples``.
        *samples: of the same N images.
        seed: of the draws.

    Returns:
        The figure and its interquartile range.
    """
    count = len(samples[0].values)
    rng = np.random.default_rng(seed)
    value = statistic(*(np.median(each.values, axis=1) for each in samples))
    draws = []
    for _ in range(DRAWS):
        images = rng.integers(count, size=count)
        repeats = (rng.integers(each.values.shape[1], size=count) for each in samples)
        draws.append(
            statistic(*(each.values[images, r] for each, r in zip(samples, repeats, strict=True)))
        )
    low, high = np.percentile(draws, (25, 75))
    return float(value), float(high - low)


class Figures(dict[str, float]):
    """Figures by name."""

    def put(self, name: str, statistic: Callable[..., float], *samples: Samples) -> None:
        """Add ``estimate`` under ``name``, its spread under ``name`` + ``.iqr``."""
        self[name], self[f"{name}.iqr"] = estimate(statistic, *samples)

    def put_repeats(self, name: str, values: np.ndarray) -> None:
        """Add the median of (R,) repeats of one thing, and their spread."""
        self.put(name, mean, Samples(values[None]))


def spread(count: int, wanted: int) -> list[int]:
    """Pick ``wanted`` of ``count`` places, evenly. ``spread(10, 4)`` is [0, 3, 6, 9]."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(wanted, count))})


# Processes


@contextlib.contextmanager
def fresh_processes(
    count: int, initializer: Callable[..., None] | None = None, *args: Any
) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of new processes of one thread each; they inherit nothing (spawned).

    Jobs may call ``start_together``.

    Args:
        count: of processes.
        initializer: called first in each.
        *args: its arguments.

    Raises:
        UserError: a process died.
    """
    context = multiprocessing.get_context("spawn")  # threads and CUDA do not survive a fork
    with one_thread():
        started = (context.Barrier(count), initializer, args)
        pool = ProcessPoolExecutor(count, context, _begin, started)
        try:
            yield pool
        except BrokenExecutor as error:
            raise UserError(
                "a worker process died (out of memory?); try again with fewer workers or images"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_barrier: Barrier | None = None  # of the pool that this process belongs to


def _begin(barrier: Barrier, initializer: Callable[..., None] | None, args: tuple) -> None:
    global _barrier
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    _barrier = barrier
    use_one_thread()
    if initializer:
        initializer(*args)


def start_together() -> None:
    """Wait, in a job of ``fresh_processes``, until each process of the pool waits in a job."""
    if _barrier is None:
        raise RuntimeError("start_together is for jobs of fresh_processes")
    _barrier.wait(timeout=600)


# The machine


def with_peak(function: Callable[..., Result], *args: Any) -> tuple[Result, float]:
    """Call a function; return its result, and the most memory held meanwhile, in MB."""
    forget_peak()
    result = function(*args)
    return result, memory_mb("VmHWM")


def forget_peak() -> None:
    """Let the peak of ``memory_mb`` begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory_mb(field: str = "VmRSS") -> float:
    """Return the memory of this process in MB: ``VmRSS`` now, ``VmHWM`` the most so far.

    From Linux's /proc, since ``getrusage`` counts what the parent held before the process began.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def machine() -> str:
    """Describe the hardware and the versions that figures depend on, in one line."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ("torch", "timm", "numpy", "scipy")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return (
        f"{os.cpu_count()} cores of {processor}, {memory:.0f} GB, {platform.system()}, "
        f"Python {platform.python_version()}, {versions}"
    )
