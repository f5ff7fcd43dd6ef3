"""How things are measured: fresh processes, one thread each, medians, spread, memory.

A figure is a number under a dotted name; its spread stands under the same name + ``.iqr``.

Shape letters: N images, R repeats. Seconds are wall-clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from promerge_d2.utils.threads import one_thread, use_one_thread

DRAWS = 1000  # of the bootstrap

_barrier: Barrier | None = None  # of the pool that this process belongs to


@dataclasses.dataclass(frozen=True)
class Samples:
    """Repeated measurements of the same thing on several images.

    Attributes:
        values: (N, R) float64; R may be 1.
    """

    values: np.ndarray

    def __getitem__(self, images: slice | list[int]) -> Samples:
        """The samples of some of the images."""
        return Samples(self.values[images])

    def __add__(self, other: Samples) -> Samples:
        """Sums of two parts of the work on the same images, each part's spread kept.

        Parts that were repeated less often are filled up by going round.
        """
        repeats = max(self.values.shape[1], other.values.shape[1])
        parts = (np.resize(part.values.T, (repeats, len(part.values))).T for part in (self, other))
        return Samples(sum(parts))


def estimate(
    statistic: Callable[..., float], *samples: Samples, seed: int = 0
) -> tuple[float, float]:
    """A figure and its spread.

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


def mean(values: np.ndarray) -> float:
    """Mean over images."""
    return float(values.mean())


def ratio(slow: np.ndarray, fast: np.ndarray) -> float:
    """Ratio of sums over the same images."""
    return float(slow.sum() / fast.sum())


class Figures(dict[str, float]):
    """Figures by name."""

    def put(self, name: str, statistic: Callable[..., float], *samples: Samples) -> None:
        """Add ``estimate`` under ``name``, its spread under ``name`` + ``.iqr``."""
        self[name], self[f"{name}.iqr"] = estimate(statistic, *samples)


@contextlib.contextmanager
def fresh_processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of new processes (spawned: nothing is inherited) of one thread each.

    Jobs may call ``start_together``.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count)
    with one_thread(), ProcessPoolExecutor(count, context, _begin, (barrier,)) as pool:
        yield pool


def _begin(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier
    use_one_thread()


def start_together() -> None:
    """Wait, in a job, until every process of the pool has come so far in a job of its own."""
    _barrier.wait(timeout=600)


def with_peak(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Call a function; what it returned, and the most memory this process held meanwhile, in MB."""
    forget_peak()
    result = function(*args)
    return result, memory_mb("VmHWM")


def forget_peak() -> None:
    """Let the peak of ``memory_mb`` begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory_mb(field: str = "VmRSS") -> float:
    """Memory of this process in MB: ``VmRSS`` resident now, ``VmHWM`` the most so far.

    From Linux's /proc, since ``getrusage`` counts what the parent held before the process began.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024
