from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as mask_api

from promerge_d2.coco.rle import check_counts, parse_counts, to_rle
from promerge_d2.utils.errors import UserError

# 3 x 4 (height x width), read column by column: 2 off, 3 on, 7 off
MASK = np.array([[0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]], dtype=np.uint8)


def test_worked_example():
    assert parse_counts("52203") == [5, 2, 2, 2, 5]


@pytest.mark.parametrize("seed", range(20))
def test_parse_counts_inverts_pycocotools(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 300, size=2)
    mask = (rng.random((height, width)) < rng.choice([0.0, 0.001, 0.5, 1.0])).astype(np.uint8)
    runs = parse_counts(mask_api.encode(np.asfortranarray(mask))["counts"])
    values = np.repeat(np.arange(len(runs)) % 2, runs)
    np.testing.assert_array_equal(values.reshape(width, height).T, mask)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [3, 4], "counts": [2, 3, 7]},
        {"size": [3, 4], "counts": mask_api.encode(np.asfortranarray(MASK))["counts"].decode()},
    ],
)
def test_rle_forms_give_the_same_mask(segmentation):
    np.testing.assert_array_equal(mask_api.decode(to_rle(segmentation, 3, 4, "r")), MASK)


def test_polygons_are_united():
    squares = [[0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 3, 1, 3, 3, 1, 3]]
    assert mask_api.area(to_rle(squares, 4, 4, "r")) == 4 + 4 - 1


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [3, 4]}, "has no 'counts'"),
        ({"counts": [12]}, "has no 'size'"),
        ({"size": [3, 4.5], "counts": [12]}, r"must be \[height, width\]"),
        ({"size": [4, 3], "counts": [12]}, "mask is 3 x 4 .* image is 4 x 3 .*look swapped"),
        ({"size": [4, 4], "counts": [16]}, "mask is 4 x 4 .* image is 4 x 3;"),
        ({"size": [3, 4], "counts": [2, 3]}, "3 x 4 = 12 pixels"),
        ({"size": [3, 4], "counts": []}, r"12 pixels"),
        ({"size": [3, 4], "counts": ""}, r"12 pixels"),
        ({"size": [3, 4], "counts": [2, 30]}, r"12 pixels"),
        ({"size": [3, 4], "counts": [2**62, 2**62, 2**62, 2**62, 12]}, r"12 pixels"),
        ({"size": [3, 4], "counts": [2**70]}, r"12 pixels"),
        ({"size": [3, 4], "counts": [14, -2]}, "negative length"),
        ({"size": [3, 4], "counts": [12.0]}, "not an integer"),
        ({"size": [3, 4], "counts": None}, "neither a string nor a list"),
        ({"size": [3, 4], "counts": "P"}, "cut off"),
        ({"size": [3, 4], "counts": "oooooooooo0"}, "too large"),
        ({"size": [3, 4], "counts": "!"}, "no RLE string has"),
        ({"size": [3, 4], "counts": "é"}, "no RLE string has"),
        ("52203", "list of polygons or an RLE"),
        ([[0, 0, 2, 2]], "three points"),
        ([[0, 0, 2, 0, 2, 2, 0]], r"\[0, 0, 2, 0, 2, 2, ...\]"),
        ([[0, 0, 2, 0, 2, 2], 5], "polygon 5"),
        ([[0, 0, 2, 0, 2, "2"]], "no coordinate"),
        ([[0, 0, 2, 0, 2, float("nan")]], "no coordinate"),
        ([[0, 0, 1e12, 0, 2, 2]], "the x coordinate .* far outside the 4 x 3 image"),
        ([[0, 0, 2, 0, 2, -4]], "the y coordinate -4, far outside"),
    ],
)
def test_broken_masks_are_refused(segmentation, message):
    with pytest.raises(UserError, match=f"^record 7: .*{message}"):
        to_rle(segmentation, 3, 4, "record 7")


def _readable(text, pixels):
    try:
        runs = parse_counts(text)
    except ValueError:
        return False
    return min(runs, default=-1) >= 0 and sum(runs) == pixels


def test_many_at_once_are_judged_as_one_by_one():
    rng = np.random.default_rng(0)
    texts, pixels = [b"", b"P", b"oooooooooo0", b"!", "é".encode(), b"0", b"52203", b"5"], []
    for _ in range(200):
        height, width = rng.integers(1, 40, 2)
        mask = rng.random((height, width)) < rng.choice([0, 0.01, 0.5, 1])
        text = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        place = int(rng.integers(0, len(text)))
        other = bytes([int(rng.integers(40, 120))])
        texts += [text, text[:place], text[:place] + other + text[place + 1 :]]
        pixels += [height * width] * 3
    pixels = np.array([1] * 5 + [0, 16, 5, *pixels], np.int64)
    expected = [_readable(text, n) for text, n in zip(texts, pixels, strict=True)]
    assert check_counts(texts, pixels)[0].tolist() == expected
    assert 200 < sum(expected) < 400
    assert check_counts([], np.zeros(0, np.int64))[0].tolist() == []
