import numpy as np
import pytest
from pycocotools import mask as mask_utils

from promerge_d2.coco.records import mask_record


@pytest.mark.parametrize(
    ("mask", "area", "bbox", "counts"),
    [
        ([[0, 1], [0, 1]], 2, [1.0, 0.0, 1.0, 2.0], [2, 2]),
        ([[1]], 1, [0.0, 0.0, 1.0, 1.0], [0, 1]),
        (
            [
                [0, 0, 0, 0, 0, 0],
                [0, 0, 1, 1, 0, 0],
                [0, 0, 1, 0, 0, 0],
                [0, 0, 0, 0, 0, 0],
                [0, 0, 0, 0, 1, 0],
                [0, 0, 0, 0, 0, 0],
            ],
            4,
            [2.0, 1.0, 3.0, 4.0],
            [13, 2, 4, 1, 8, 1, 7],  # column by column: runs of 0 and 1 in turns
        ),
    ],
)
def test_mask_record(mask, area, bbox, counts):
    mask = np.array(mask, bool)
    record = mask_record(mask)
    assert record["area"] == area
    assert type(record["area"]) is int
    assert record["bbox"] == bbox
    assert {type(side) for side in record["bbox"]} == {float}
    assert record["score"] == 1.0
    size = list(mask.shape)
    assert record["segmentation"]["size"] == size
    assert isinstance(record["segmentation"]["counts"], str)
    by_hand = mask_utils.frPyObjects({"size": size, "counts": counts}, *size)
    assert record["segmentation"]["counts"] == by_hand["counts"].decode()


def test_mask_record_takes_a_score():
    assert mask_record(np.ones((2, 2), bool), 0.25)["score"] == 0.25
