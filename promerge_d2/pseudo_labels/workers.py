"""Worker processes, of which some may die.

Workers die of too little memory, or of a crash in somebody's decoder. ``ProcessPoolExecutor`` then
breaks with all that it has in hand. Here the jobs that it may have been at are tried again, each
alone: the one at which a worker dies once more fails, and new workers go on with the others.
"""

from __future__ import annotations

import collections
import functools
import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Any

from promerge_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

IN_A_ROW = 10  # jobs that end their workers one after the other; then it is not the jobs
OURS = {signal.SIGINT, signal.SIGTERM} if hasattr(signal, "sigtimedwait") else {signal.SIGINT}
"""Signals that workers leave to this process: batch systems send them to all (not all on macOS)."""


class WorkerDied(UserError):
    """Nobody but this job ends its worker process."""


@dataclass(eq=False)
class _Job:
    function: Callable
    arguments: tuple
    future: Future = field(default_factory=Future)


class Workers(Executor):
    """Worker processes.

    A job's future ends in ``WorkerDied`` where that job ends its worker, in ``BrokenExecutor``
    where workers do not start or die again and again, in ``CancelledError`` after ``shutdown``.

    Args:
        count: processes.
        initializer: called in each process before its first job.
        arguments: of the initializer.
        stop: when it is set, what a death has left is dropped.
    """

    def __init__(
        self, count: int, initializer: Callable, arguments: tuple, stop: threading.Event | Event
    ) -> None:
        self._count = count
        self._stop = stop
        self._initializer = functools.partial(initializer, *arguments)
        self._lock = threading.RLock()  # of all that follows
        self._lost: list[_Job] = []  # were in hand of processes that died
        self._waiting: list[_Job] = []  # came while there was no pool
        self._mender: threading.Thread | None = None
        self._deaths = 0  # in a row
        self._end: type[Exception] | None = None  # what jobs come to that come now
        self._why = ""
        self._pool, _ = self._start(count)

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """See ``Executor``."""
        job = _Job(functools.partial(fn, **kwargs) if kwargs else fn, args)
        with self._lock:
            self._give(job)
        return job.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """See ``Executor``; what is not begun after a death is dropped in any case."""
        with self._lock:
            self._end = self._end or CancelledError
            mender = self._mender
        if mender:
            mender.join()
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def _start(self, count: int) -> tuple[ProcessPoolExecutor, list[BaseProcess]]:
        """A pool and its processes."""
        context = multiprocessing.get_context("spawn")  # threads and CUDA do not survive a fork
        pool = ProcessPoolExecutor(count, context, self._initializer)
        before = multiprocessing.active_children()
        # what is blocked here stays blocked in the processes that start now
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
        try:
            for _ in range(count):
                pool.submit(int)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return pool, [p for p in multiprocessing.active_children() if p not in before]

    # The rest is called with the lock held, but for _settle, _mend, _ending and _try_alone.

    def _give(self, job: _Job) -> None:
        """Have a job done, or keep it until it can be."""
        if self._end:
            job.future.set_exception(self._end(self._why))
        elif self._mender:
            self._waiting.append(job)
        else:
            try:
                given = self._pool.submit(job.function, *job.arguments)
            except BrokenExecutor:
                self._lose(job)
            else:
                given.add_done_callback(functools.partial(self._settle, job))

    def _lose(self, job: _Job) -> None:
        if self._end:
            self._give(job)
            return
        self._lost.append(job)
        if not self._mender:
            self._mender = threading.Thread(target=self._mend, name="mender")
            self._mender.start()

    def _settle(self, job: _Job, given: Future) -> None:
        """Take over what became of a job in a pool."""
        error = CancelledError() if given.cancelled() else given.exception()
        if isinstance(error, BrokenExecutor):
            with self._lock:
                self._lose(job)
        elif error is not None:
            job.future.set_exception(error)
        else:
            self._deaths = 0
            job.future.set_result(given.result())

    def _mend(self) -> None:
        """Find out who ended the pool, then go on with a new one."""
        self._pool.shutdown()  # all that it had in hand is lost now, oldest first
        with self._lock:
            # jobs are taken in turn, so the youngest were not begun
            suspects, self._waiting = self._lost[: self._count], self._lost[self._count :]
            self._lost = []
        logger.warning(
            "a worker process died; the %d images that it may have been at are tried one by one",
            len(suspects),
        )
        try:
            self._try_alone(collections.deque(suspects))
            if not self._ending():
                self._pool, _ = self._start(self._count)
        except Exception as error:  # noqa: BLE001 - raised again where results are taken
            self._end, self._why = BrokenExecutor, str(error) or type(error).__name__
        with self._lock:
            self._mender = None
            waiting, self._waiting = self._waiting, []
            for job in suspects + waiting:
                if not job.future.done():
                    self._give(job)

    def _ending(self) -> bool:
        if not self._end and self._stop.is_set():
            self._end = CancelledError
        return self._end is not None

    def _try_alone(self, suspects: collections.deque[_Job]) -> None:
        """Do jobs one at a time, while there is no end in sight.

        Raises:
            BrokenExecutor: there can be no more workers.
        """
        pool = None
        while suspects and not self._ending():
            if pool is None:
                pool, processes = self._start(1)
                used = False
                try:
                    pool.submit(int).result()
                except BrokenExecutor as error:
                    raise BrokenExecutor("they die before their first image") from error
            job = suspects[0]
            given = pool.submit(job.function, *job.arguments)
            if isinstance(given.exception(), BrokenExecutor):
                pool.shutdown()
                pool = None
                if used:  # what came before may have left too little memory: once more
                    continue
                self._deaths += 1
                job.future.set_exception(WorkerDied(_why_it_died(processes[0].exitcode)))
            else:
                self._settle(job, given)
                used = True
            suspects.popleft()
            if self._deaths == IN_A_ROW:
                raise BrokenExecutor(f"{IN_A_ROW} images in a row ended their worker process")
        if pool is not None:
            pool.shutdown()


def _why_it_died(code: int | None) -> str:
    """What a process's exit code tells."""
    how = f"exit code {code}"
    if code is not None and code < 0:
        how = f"signal {-code} ({signal.strsignal(-code)})"
        how += ": out of memory?" if -code == signal.SIGKILL else ""
    return (
        f"a worker process died of it twice, the second time with nothing else in hand, {how}; "
        "--retry-failed tries it again"
    )
