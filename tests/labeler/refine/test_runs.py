import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from promerge_d2.labeler.refine.resize import resize_mask
from promerge_d2.labeler.refine.runs import resize_to_rle


def written_out(mask, height, width):
    return mask_utils.encode(np.asfortranarray(resize_mask(mask, height, width), dtype=np.uint8))


@pytest.mark.parametrize("seed", range(40))
def test_is_pillows_resizing_to_the_bit(seed):
    """Noise and blobs, larger and smaller, also where one side grows and the other shrinks."""
    rng = np.random.default_rng(seed)
    shape, (height, width) = rng.integers(1, 60, 2), rng.integers(1, 200, 2).tolist()
    noise = rng.random(shape) < rng.random()
    blobs = cv2.GaussianBlur(rng.random(shape), (0, 0), 3) > 0.5
    for mask in (noise, np.asarray(blobs).reshape(shape)):
        assert resize_to_rle(mask, height, width) == written_out(mask, height, width)


def test_empty_full_and_unchanged():
    for mask in (np.zeros((4, 6), bool), np.ones((4, 6), bool)):
        for size in ((4, 6), (40, 70)):
            assert resize_to_rle(mask, *size) == written_out(mask, *size)


def test_many_runs_fit():
    """A chequered mask: more runs than the first room for them."""
    mask = np.indices((60, 60)).sum(axis=0) % 2 == 0
    assert len(resize_to_rle(mask, 240, 240)["counts"]) > 5000
    assert resize_to_rle(mask, 240, 240) == written_out(mask, 240, 240)
