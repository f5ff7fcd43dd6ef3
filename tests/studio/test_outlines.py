"""Masks of small pictures, against decoding the whole."""

import re

import numpy as np
import pytest
from pycocotools import mask as mask_api

from promerge_d2.studio.outlines import fit, outline, sample
from tests.helpers import square


def encode(mask):
    return mask_api.encode(np.asfortranarray(mask, np.uint8))


def random_mask(rng, height, width):
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 4)):
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, height), x : x + rng.integers(1, width)] ^= True
    return mask


@pytest.mark.parametrize("seed", range(40))
def test_a_mask_is_what_the_photograph_has_at_the_centres_of_pixels(seed):
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(3, 60, 2).tolist()
    height, width = rng.integers(1, rows + 1), rng.integers(1, columns + 1)
    mask = random_mask(rng, rows, columns)
    part, top, left = sample(encode(mask), height, width)
    found = np.zeros((height, width), bool)
    found[top : top + part.shape[0], left : left + part.shape[1]] = part
    ys = ((np.arange(height) + 0.5) * rows / height).astype(int)
    xs = ((np.arange(width) + 0.5) * columns / width).astype(int)
    assert np.array_equal(found, mask[np.ix_(ys, xs)])


def points(path):
    return [tuple(map(float, pair.split(","))) for pair in re.findall(r"[\d.]+,[\d.]+", path)]


def test_a_rectangle():
    path = outline(encode(square(40, 60, 10, 8, 30, 20)), 40, 60)
    assert sorted(points(path)) == [(10.5, 8.5), (10.5, 19.5), (29.5, 8.5), (29.5, 19.5)]
    half = outline(encode(square(40, 60, 10, 8, 30, 20)), 20, 30)
    assert sorted(points(half)) == [(5.5, 4.5), (5.5, 9.5), (14.5, 4.5), (14.5, 9.5)]


def test_a_hole_is_an_outline_of_its_own():
    ring = square(40, 40, 5, 5, 35, 35) & ~square(40, 40, 15, 15, 25, 25)
    assert outline(encode(ring), 40, 40).count("M") == 2


def test_a_mask_between_the_centres_becomes_its_box():
    dot = square(1000, 1000, 501, 502, 502, 504)
    assert outline(encode(dot), 100, 100) == "M50.1,50.2h0.1v0.2h-0.1z"
    assert outline(encode(np.zeros((1000, 1000), bool)), 100, 100) == ""


def test_fit_keeps_a_strip_visible():
    assert fit(10, 100000, 360) == (1, 360)
    assert fit(30, 20, 360) == (30, 20)
