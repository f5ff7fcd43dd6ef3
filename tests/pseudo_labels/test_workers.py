"""Processes that die for real."""

import functools
import logging
import multiprocessing
import os
import random
import signal
import threading
import time
from concurrent.futures import BrokenExecutor, CancelledError

import pytest

from promerge_d2.pseudo_labels import workers
from promerge_d2.pseudo_labels.workers import WorkerDied, Workers
from tests.pseudo_labels.dying import begin_once, die_once, large, not_picklable, serve_calls, sleep


@pytest.fixture
def executor(monkeypatch):
    """``executor(count)`` with workers that begin by ``initializer()``."""
    monkeypatch.setattr(workers, "serve_calls", serve_calls)
    started = []

    def start(count, initializer=int):
        started.append(Workers(count, initializer, start.stop))
        return started[-1]

    start.stop = threading.Event()
    yield start
    for each in started:
        each.shutdown(cancel_futures=True)


def outcome(future):
    try:
        error = future.exception(timeout=60)
    except CancelledError as cancelled:
        error = cancelled
    return future.result() if error is None else type(error)


def test_only_the_culprits_fail(executor, caplog):
    pool = executor(2)
    jobs = [(abs, -1), (signal.raise_signal, signal.SIGKILL), (sleep, 0.2, 2), (abs, -3)]
    jobs += [(os._exit, 5), (abs, "x"), (abs, -6), (abs, -7)]
    with caplog.at_level(logging.WARNING):
        futures = [pool.submit(*job) for job in jobs]
        found = [outcome(future) for future in futures]
    assert found == [1, WorkerDied, 2, 3, WorkerDied, TypeError, 6, 7]
    assert str(futures[1].exception()) == (
        "a worker process died of it twice, the second time with nothing else in hand, signal 9 "
        "(Killed): out of memory?; --retry-failed tries it again"
    )
    assert "in hand, exit code 5; --retry" in str(futures[4].exception())
    assert "a worker process died at a job; it is tried again, alone" in caplog.text
    assert outcome(pool.submit(abs, -8)) == 8


def test_a_death_that_does_not_come_again_costs_nothing(executor, tmp_path):
    pool = executor(2)
    jobs = [pool.submit(die_once, tmp_path / "mark", number) for number in range(6)]
    assert [outcome(job) for job in jobs] == [0, 1, 2, 3, 4, 5]


def test_deaths_one_after_the_other_are_not_the_jobs_fault(executor, monkeypatch):
    monkeypatch.setattr(workers, "IN_A_ROW", 3)
    pool = executor(1)
    assert outcome(pool.submit(os._exit, 5)) == WorkerDied
    assert outcome(pool.submit(os._exit, 5)) == WorkerDied
    assert outcome(pool.submit(abs, -1)) == 1  # begins the count anew
    futures = [pool.submit(os._exit, 5) for _ in range(5)]
    assert [outcome(future) for future in futures] == [*[WorkerDied] * 3, *[BrokenExecutor] * 2]
    assert str(futures[4].exception()) == "3 images in a row ended their worker process"
    assert outcome(pool.submit(abs, -1)) == BrokenExecutor


def test_workers_that_cannot_begin(executor, tmp_path):
    pool = executor(1, functools.partial(begin_once, tmp_path / "mark"))
    future = pool.submit(os._exit, 5)
    assert outcome(future) == BrokenExecutor
    assert str(future.exception()) == "they die before their first image"


@pytest.mark.parametrize("how", ["shut down", "stopped"])
def test_after_the_end_no_job_is_begun(executor, how, caplog):
    pool = executor(2)
    futures = [pool.submit(os._exit, 5), *(pool.submit(sleep, 0.3, n) for n in range(6))]
    while "a worker process died" not in caplog.text:
        time.sleep(0.01)
    if how == "stopped":
        executor.stop.set()
    else:
        pool.shutdown(cancel_futures=True)
    assert all(isinstance(outcome(future), int | type) for future in futures)
    assert outcome(futures[6]) == CancelledError
    if how == "stopped":
        assert outcome(pool.submit(abs, -1)) == CancelledError


def test_a_person_who_will_not_wait_ends_the_jobs_in_hand(executor, caplog):
    pool = executor(2)
    assert outcome(pool.submit(abs, -1)) == 1
    futures = [pool.submit(sleep, 60, n) for n in range(4)]
    while not all(future.running() for future in futures[:2]):
        time.sleep(0.01)
    executor.stop.set()
    started = time.monotonic()
    workers.kill_workers()
    assert [outcome(future) for future in futures] == [CancelledError] * 4
    pool.shutdown()
    assert time.monotonic() - started < 20
    assert "tried again" not in caplog.text


def test_a_stop_while_a_worker_starts_begins_no_job(executor, monkeypatch):
    pool = executor(1, functools.partial(sleep, 1, 0))  # not ready at once
    future = pool.submit(sleep, 60, 1)
    while not multiprocessing.active_children():
        time.sleep(0.01)
    monkeypatch.setattr(workers, "_NAME", "another")  # as if it had been too young to be seen
    executor.stop.set()
    workers.kill_workers()
    started = time.monotonic()
    assert outcome(future) == CancelledError
    assert time.monotonic() - started < 20


def test_a_worker_that_dies_in_the_middle_of_a_result_holds_nobody_up(executor):
    """Its results are larger than a pipe; workers are killed at any moment."""
    pool = executor(2)
    futures = [pool.submit(large, 8_000_000) for _ in range(40)]
    chance = random.Random(0)
    for _ in range(4):
        time.sleep(chance.uniform(0.2, 0.8))
        if found := multiprocessing.active_children():
            os.kill(chance.choice(found).pid, signal.SIGKILL)
    found = [outcome(future) for future in futures]
    assert {len(each) if isinstance(each, bytes) else each for each in found} <= {
        8_000_000,
        WorkerDied,  # killed twice by chance
    }
    assert sum(isinstance(each, bytes) for each in found) >= 38


def test_what_cannot_be_pickled_is_the_jobs_fault(executor):
    pool = executor(1)
    assert issubclass(outcome(pool.submit(abs, lambda: 0)), Exception)
    assert issubclass(outcome(pool.submit(not_picklable)), Exception)
    failed = pool.submit(int, "x")
    assert outcome(failed) is ValueError
    assert "serve_calls" in str(failed.exception().__cause__)  # where it was raised
    assert outcome(pool.submit(abs, -1)) == 1


def test_workers_end_with_the_executor(executor):
    pool = executor(2)
    assert [outcome(pool.submit(abs, n)) for n in (-1, -2)] == [1, 2]
    assert multiprocessing.active_children()
    pool.shutdown()
    assert not multiprocessing.active_children()
