import os

import cv2
import numpy as np
import pytest
import torch

from benchmarks.speed.compare import agreement, identical, iou, ious
from benchmarks.speed.harness import after, spread, total
from benchmarks.speed.measure import (
    Figures,
    Samples,
    estimate,
    fresh_processes,
    mean,
    memory_mb,
    ratio,
    start_together,
    with_peak,
)
from promerge_d2.utils.threads import THREAD_VARIABLES
from tests.labeler.helpers import grid


def samples(*rows):
    return Samples(np.array(rows, float))


def test_an_estimate_takes_medians_over_repeats_and_sums_over_images():
    slow = samples([4, 90, 2], [20, 22, 8])  # medians 4 and 20
    fast = samples([1, 1], [2, 4])  # medians 1 and 3
    assert estimate(mean, slow)[0] == 12
    assert estimate(ratio, slow, fast)[0] == 24 / 4


def test_the_spread_is_that_of_images_and_repeats():
    assert estimate(mean, samples([3], [3], [3]))[1] == 0
    # two images: draws are (1, 1), (1, 5), (5, 1), (5, 5), so the quartiles of the mean are 1..3..5
    assert estimate(mean, samples([1], [5]))[1] == pytest.approx(2, abs=2)
    assert estimate(mean, samples([1], [5]))[1] > 0
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
    names = ("decoding", "features", "masks", "refinement", "encoding")
    stages = {name: samples([10**place]) for place, name in enumerate(names)}
    assert total(stages).values.item() == 11111
    assert after(stages).values.item() == 11100


def test_figures_carry_their_spread():
    figures = Figures()
    figures.put("a.b", mean, samples([1, 5]))
    assert figures == {"a.b": 3, "a.b.iqr": 4}


def test_images_are_spread_over_the_list():
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 5) == [0, 1, 2]
    assert spread(4, 1) == [0]


def test_agreement_by_hand():
    a, b, empty = grid("##.."), grid(".##."), grid("....")
    assert iou(a, b) == 1 / 3
    assert iou(a, a) == iou(empty, empty) == 1
    assert iou(a, empty) == 0
    none = np.zeros((0, 1, 4), bool)
    assert ious([np.array([a, b]), none], [np.array([a, a]), none]).tolist() == [1, 1 / 3]
    assert identical([np.array([a, b]), none], [np.array([b, a]), none]) == 2  # in any order
    assert identical([np.array([a]), none], [np.array([b]), np.array([a])]) == 0
    # a and b of one side look for the a of the other, and that a for its like
    assert agreement([np.array([a, b])], [np.array([a])]) == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert agreement([none], [none]) == 1
    assert agreement([np.array([a])], [none]) == 0


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


def test_peak_memory_is_that_of_the_call():
    def hold(megabytes):
        return int(np.ones(megabytes << 20, np.uint8).sum()) >> 20

    result, large = with_peak(hold, 200)
    assert result == 200
    before = memory_mb()
    _, small = with_peak(hold, 1)
    assert large - before > 150
    assert small - before < 100
