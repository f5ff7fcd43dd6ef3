"""The labeler from an image to records, on colours instead of features."""

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from promerge_d2.labeler import ProMergeLabeler
from promerge_d2.labeler.refine import REFINERS
from tests.labeler.helpers import squares, stub


def decode(records):
    return np.array([mask_utils.decode(r["segmentation"]) for r in records], bool)


def test_a_square_on_a_background():
    pixels = squares(96, 120, (3, 8, 2, 7))
    (record,) = stub()(pixels)
    assert record["bbox"] == [20.0, 24.0, 50.0, 40.0]
    assert record["area"] == 50 * 40
    assert np.array_equal(decode([record])[0], pixels[..., 0] == 220)


def test_two_objects_come_by_descending_area_on_the_grid():
    pixels = squares(96, 120, (2, 4, 2, 4), (6, 11, 4, 11))
    found = stub(component_share=0.1)(pixels)
    assert [r["area"] for r in found] == [5 * 8 * 7 * 10, 2 * 8 * 2 * 10]


@pytest.mark.parametrize("grid", [(12, 24), (24, 12)])
def test_grids_need_not_be_square(grid):
    pixels = squares(96, 120, (3, 8, 2, 7))
    (record,) = stub(grid=grid)(pixels)
    truth = pixels[..., 0] == 220
    mask = decode([record])[0]
    assert (mask & truth).sum() / (mask | truth).sum() > 0.8
    x, y, w, h = record["bbox"]
    assert abs(x + w / 2 - 45) <= 5
    assert abs(y + h / 2 - 44) <= 5


def test_dense_crf_finds_the_edges():
    pytest.importorskip("pydensecrf")
    pixels = squares(96, 120, (3, 8, 2, 7))
    pixels[20:24, 20:70] = (220, 20, 20)  # half a patch more at the top
    truth = pixels[..., 0] == 220
    rough = decode(stub()(pixels))[0]
    (record,) = stub(refine="dense_crf")(pixels)
    mask = decode([record])[0]
    iou = [(m & truth).sum() / (m | truth).sum() for m in (rough, mask)]
    assert iou[1] > 0.95
    assert iou[1] > iou[0]


@pytest.mark.parametrize(
    ("settings", "pixels", "reason"),
    [
        ({}, squares(60, 60), "no_foreground"),
        ({"tau_b": 0.9, "min_background": 1.0}, squares(60, 60, (3, 8, 2, 7)), "small_background"),
        ({"tau_f": -1.0}, squares(60, 60, (3, 8, 2, 7)), "all_pruned"),
        # only the prompt (0, 0), which is on the object
        ({"stride": 12}, squares(60, 60, (0, 3, 0, 3)), "no_background"),
    ],
)
def test_reasons(settings, pixels, reason):
    result = stub(**settings).label(pixels)
    assert result.reason == reason
    assert reason in ProMergeLabeler.reasons
    assert result.records == []
    assert set(result.seconds) == {"decoding", "features", "masks"}


def test_reason_when_refinement_rejects_all(monkeypatch):
    monkeypatch.setitem(REFINERS, "mean_field", lambda image, masks: ~masks)
    result = stub(refine="mean_field").label(squares(60, 60, (3, 8, 2, 7)))
    assert result.reason == "all_rejected_by_refinement"
    assert result.records == []


def test_constant_image():
    assert stub().label(np.full((50, 70, 3), 127, np.uint8)).reason == "no_foreground"
