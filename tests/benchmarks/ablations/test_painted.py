import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from benchmarks.ablations.painted import (
    CASES,
    HEIGHT,
    SIDES,
    WIDTH,
    frame_parts,
    paint,
    paint_case,
)

MARGIN = 20  # pixels that an object away from the border keeps from it, at least


def touched(mask):
    edges = {"top": mask[0], "bottom": mask[-1], "left": mask[:, 0], "right": mask[:, -1]}
    return {side for side in SIDES if edges[side].any()}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_objects_touch_exactly_so_many_sides(count):
    seen = set()
    for index in range(12):
        _, (mask,) = paint(f"touch_{count}", index)
        sides = touched(mask)
        assert len(sides) == count
        seen.add(frozenset(sides))
        pieces, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
        assert pieces == 2  # the rest, and one object
        assert 0.05 < mask.mean() < 0.95
    assert len(seen) == {1: 4, 2: 6, 3: 4, 4: 1}[count]  # every combination


@pytest.mark.parametrize("case", ["away", "texture", "frame"])
def test_objects_away_from_the_border(case):
    counts = set()
    for index in range(8):
        picture, masks = paint(case, index)
        assert picture.shape == (HEIGHT, WIDTH, 3)
        assert picture.dtype == np.uint8
        counts.add(len(masks))
        for mask in masks:
            assert mask.any()
            inner = np.zeros_like(mask)
            inner[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
            assert not (mask & ~inner).any()
        assert np.sum(masks, axis=0).max() == 1  # no two share a pixel
    assert counts == {1, 2, 3}


def test_frame_strips_cover_the_border_and_no_object():
    strips = frame_parts(np.random.default_rng(0))
    for strip, side in zip(strips, ("top", "right", "bottom", "left"), strict=True):
        assert side in touched(strip)
    border = np.ones((HEIGHT, WIDTH), bool)
    border[1:-1, 1:-1] = False
    covered = np.sum(strips, axis=0)
    assert covered[border].min() == 1
    assert covered.max() == 1
    _, masks = paint("frame", 0)
    assert not (np.sum(masks, axis=0).astype(bool)[:40]).any()


def test_texture_has_far_more_edges_than_the_same_objects_smooth():
    def edges(case):
        picture, masks = paint(case, 1)
        inside = cv2.erode(np.sum(masks, axis=0).astype(np.uint8), np.ones((9, 9))).astype(bool)
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
        return np.abs(np.diff(grey, axis=1))[inside[:, 1:]].mean()

    assert edges("texture") > 3 * edges("away")


def test_written_ground_truth_is_that_of_the_painting(tmp_path):
    folder, annotations = paint_case("touch_2", 3, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["000.png", "001.png", "002.png"]
    coco = json.loads(annotations.read_text())
    assert [image["file_name"] for image in coco["images"]] == ["000.png", "001.png", "002.png"]
    for annotation in coco["annotations"]:
        _, (mask,) = paint("touch_2", annotation["image_id"] - 1)
        assert (mask_utils.decode(annotation["segmentation"]) == mask).all()
        assert annotation["area"] == mask.sum()


def test_painting_twice_gives_the_same_bytes(tmp_path):
    for run in ("a", "b"):
        paint_case("frame", 2, tmp_path / run)
    for file in ("frame/000.png", "frame/001.png", "frame.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert list(CASES)[-1] == "frame"
