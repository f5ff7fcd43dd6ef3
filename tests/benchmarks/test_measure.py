import os

import cv2
import numpy as np
import pytest
import torch

from benchmarks.measure import (
    Figures,
    Samples,
    estimate,
    fresh_processes,
    mean,
    memory_mb,
    ratio,
    spread,
    start_together,
    with_peak,
)
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.threads import THREAD_VARIABLES


def samples(*rows):
    return Samples(np.array(rows, float))


def test_an_estimate_takes_medians_over_repeats_and_sums_over_images():
    slow = samples([4, 90, 2], [20, 22, 8])  # medians 4 and 20
    fast = samples([1, 1], [2, 4])  # medians 1 and 3
    assert estimate(mean, slow)[0] == 12
    assert estimate(ratio, slow, fast)[0] == 24 / 4


def test_the_spread_is_that_of_images_and_repeats():
    assert estimate(mean, samples([3], [3], [3]))[1] == 0
    # two images: the draws (1, 1), (1, 5), (5, 1), (5, 5) have the means 1, 3, 3, 5, so the middle
    # half lies between 1 to 3 and 3 to 5, wherever chance puts the quartiles
    assert estimate(mean, samples([1], [5]))[1] in (0, 2, 4)
    # many images, half of them 0 and half 1: the mean of n draws has a deviation of 0.5 / sqrt(n),
    # and its interquartile range is 1.35 of that
    many = samples(*[[0], [1]] * 200)
    assert estimate(mean, many)[1] == pytest.approx(1.35 * 0.5 / 20, rel=0.15)
    # one image with repeats 1 and 5: their quartiles
    assert estimate(mean, samples([1, 5]))[1] == 4
    # a ratio of the same images does not spread where each image has the same ratio
    assert estimate(ratio, samples([2], [60]), samples([1], [30]))[1] == 0
    assert estimate(mean, samples([1], [5], [7])) == estimate(mean, samples([1], [5], [7]))


def test_parts_add_up_where_one_was_measured_once():
    once, often = samples([10], [20]), samples([1, 2, 3], [4, 5, 6])
    assert (once + often).values.tolist() == [[11, 12, 13], [24, 25, 26]]
    assert (often + once).values.tolist() == [[11, 12, 13], [24, 25, 26]]
    assert often[[1]].values.tolist() == [[4, 5, 6]]


def test_figures_carry_their_spread():
    figures = Figures()
    figures.put("a.b", mean, samples([1, 5]))
    figures.put_repeats("c", np.array([1, 5]))
    assert figures == {"a.b": 3, "a.b.iqr": 4, "c": 3, "c.iqr": 4}


def test_images_are_spread_over_the_list():
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 5) == [0, 1, 2]
    assert spread(4, 1) == [0]


def surroundings():
    start_together()
    variables = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    return os.getpid(), torch.get_num_threads(), cv2.getNumThreads(), variables


def test_fresh_processes_have_one_thread_each_and_start_together(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with fresh_processes(2) as pool:
        # were there but one process, the first job would wait for ever
        first, second = [job.result() for job in [pool.submit(surroundings) for _ in range(2)]]
    assert len({os.getpid(), first[0], second[0]}) == 3
    for _, torch_threads, cv2_threads, variables in (first, second):
        assert torch_threads == cv2_threads == 1
        assert variables == dict.fromkeys(THREAD_VARIABLES, "1")
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def die():
    os._exit(1)


def test_a_dead_process_is_said():
    with pytest.raises(UserError, match="worker process died"), fresh_processes(1) as pool:
        pool.submit(die).result()


def test_start_together_is_for_the_pool():
    with pytest.raises(RuntimeError, match="fresh_processes"):
        start_together()


def test_peak_memory_is_that_of_the_call():
    def hold(megabytes):
        return int(np.ones(megabytes << 20, np.uint8).sum()) >> 20

    result, large = with_peak(hold, 200)
    assert result == 200
    before = memory_mb()
    _, small = with_peak(hold, 1)
    assert large - before > 150
    assert small - before < 100
