"""Worker processes, of which some may die.

Workers die of too little memory, or of a crash in somebody's decoder. Each worker has a pipe of its
own to this process, so that its death is seen at once as the pipe's end, whatever it was doing, and
it is known at which job it was. That job is tried again, alone; if it ends its worker once more, it
has itself to blame. The others go on.

Why no library's pool of processes: of 150 jobs with results of 8 MB, two workers, one of them
killed about every 0.7 s, three seeds, pebble's ``ProcessPool`` lost 121, 148 and 121 ("All workers
expired": its workers share a pipe, and one may die between two jobs). ``concurrent.futures``' pool,
with the lost jobs tried again one by one, hung once, in the middle of a result whose writer was
gone, and took 54 and 44 s. This one took 5.8, 4.9 and 7.8 s (cores shared with other programs), and
set one job aside, which chance had killed twice.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import Any

from promerge_d2.pseudo_labels.worker_process import serve_calls
from promerge_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

IN_A_ROW = 10  # jobs that end their workers one after the other; then it is not the jobs
OURS = {signal.SIGINT, signal.SIGTERM} if hasattr(signal, "sigtimedwait") else {signal.SIGINT}
"""Signals that workers leave to this process: batch systems send them to all (not all on macOS)."""


_NAME = "promerge_d2 worker"  # of the processes


class WorkerDied(UserError):
    """Nobody but this job ends its worker process."""


_starting = threading.Lock()  # weights move to shared memory when they are first sent


class _Worker:
    """A process and the pipe to it; ``EOFError`` or ``OSError`` of the pipe: it has died."""

    def __init__(self, initializer: Callable[[], object]) -> None:
        context = multiprocessing.get_context("spawn")  # threads and CUDA do not survive a fork
        self.pipe, pipe = context.Pipe()
        self._process = context.Process(
            target=serve_calls, args=(pipe, initializer), name=_NAME, daemon=True
        )
        with _starting:
            self._process.start()
        pipe.close()  # the process has the only other end now

    def close(self) -> int:
        """Wait for the process, which ends when its pipe does; return its exit code."""
        self.pipe.close()
        self._process.join()
        return self._process.exitcode or 0


def kill_workers() -> None:
    """End this process's workers at once; with ``stop`` set, their jobs are cancelled."""
    for process in multiprocessing.active_children():
        if process.name == _NAME:
            process.kill()


class Workers(ThreadPoolExecutor):
    """Worker processes, each served by a thread.

    A job's future ends in ``WorkerDied`` where it is the job that ends its worker, and in
    ``BrokenExecutor`` where there can be no more workers: they do not start, or die again and
    again. It ends in ``CancelledError`` if ``stop`` is set before the job begins.

    Args:
        count: processes.
        initializer: called in each process before its first job.
        stop: when it is set, no more jobs are begun.
    """

    def __init__(
        self, count: int, initializer: Callable[[], object], stop: threading.Event
    ) -> None:
        resource_tracker.ensure_running()  # it unblocks signals when it starts
        # processes that the threads start inherit which signals are blocked
        super().__init__(
            count, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, OURS)
        )
        self._begin = initializer
        self._stop = stop
        self._changed = threading.Condition()  # guards what follows
        self._idle: list[_Worker] = []
        self._busy = 0  # jobs in hand
        self._alone = False  # a job has all to itself, or waits for it
        self._deaths = 0  # in a row
        self._no_more = ""  # why there can be no more workers

    def submit(self, function: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Have a function called in a worker, see ``Executor``."""
        return super().submit(self._do, functools.partial(function, *args, **kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """End the workers after the jobs in hand, see ``Executor``; it always waits."""
        super().shutdown(cancel_futures=cancel_futures)
        while self._idle:
            self._idle.pop().close()

    def _do(self, job: Callable[[], Any]) -> Any:
        """Do a job, if need be twice.

        Raises:
            WorkerDied, BrokenExecutor, CancelledError: see the class.
        """
        exit_code = 0
        for alone in (False, True):
            with self._turn(alone):
                worker = self._take_worker()
                try:
                    worker.pipe.send(job)
                    returned, value = worker.pipe.recv()
                except (EOFError, OSError):
                    exit_code = worker.close()
                except Exception:
                    self._idle.append(worker)  # arguments or a result that cannot be pickled
                    raise
                else:
                    self._idle.append(worker)
                    self._deaths = 0
                    if returned:
                        return value
                    raise value
            if not alone and not self._stop.is_set():
                logger.warning("a worker process died at a job; it is tried again, alone")
        with self._changed:
            self._deaths += 1
            if self._deaths >= IN_A_ROW:
                self._no_more = f"{IN_A_ROW} images in a row ended their worker process"
        raise WorkerDied(_explain_death(exit_code))

    @contextlib.contextmanager
    def _turn(self, alone: bool) -> Iterator[None]:
        """Wait until a job may be done; alone, until no other is in hand and no worker is left."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            if alone:
                self._alone = True
                self._changed.wait_for(lambda: not self._busy)
                while self._idle:
                    self._idle.pop().close()  # they hold memory
            self._busy += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._alone = self._alone and not alone
                self._changed.notify_all()

    def _take_worker(self) -> _Worker:
        """Take an idle worker, or start one.

        Raises:
            BrokenExecutor: there can be no more workers.
            CancelledError: ``stop`` is set.
        """
        if self._stop.is_set():
            raise CancelledError
        if self._no_more:
            raise BrokenExecutor(self._no_more)
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        for _ in range(2):
            worker = _Worker(self._begin)
            try:
                worker.pipe.recv()  # it is ready
            except (EOFError, OSError):
                worker.close()
            else:
                if not self._stop.is_set():
                    return worker
                worker.close()
            if self._stop.is_set():  # set while it started, and perhaps killed for that
                raise CancelledError
        self._no_more = "they die before their first image"
        raise BrokenExecutor(self._no_more)


def _explain_death(code: int) -> str:
    """Explain what a process's exit code says."""
    how = f"exit code {code}"
    if code < 0:
        how = f"signal {-code} ({signal.strsignal(-code)})"
        how += ": out of memory?" if -code == signal.SIGKILL else ""
    return (
        f"a worker process died of it twice, the second time with nothing else in hand, {how}; "
        "--retry-failed tries it again"
    )
