"""The labeler from an image to records."""

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from promerge_d2.labeler import RegionsLabeler


def test_best_preset_scores_and_ranks(tiny):
    """A bright square on a dark ground comes first, on a grid of the image's shape."""
    labeler = RegionsLabeler.from_preset("best", *map(str, tiny), grid=12)
    image = np.full((60, 120, 3), 20, np.uint8)
    image[20:50, 60:90] = (240, 40, 40)
    result = labeler.label(image)
    scores = [record["score"] for record in result.records]
    assert scores == sorted(scores, reverse=True)
    assert 1 >= scores[0] > scores[-1] >= 0
    masks = [mask_utils.decode(record["segmentation"]).astype(bool) for record in result.records]
    assert {mask.shape for mask in masks} == {(60, 120)}
    overlaps = np.array([[(a & b).sum() / (a | b).sum() for b in masks] for a in masks])
    assert overlaps[~np.eye(len(masks), dtype=bool)].max(initial=0) <= 0.75
    prepared = labeler.processor.preprocess(image)
    assert prepared.views[0].shape[0] * 2 == pytest.approx(prepared.views[0].shape[1], rel=0.15)


def test_images_of_several_shapes_go_in_one_batch(tiny):
    labeler = RegionsLabeler.from_preset("best", *map(str, tiny), grid=12)
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 255, (*shape, 3)).astype(np.uint8)
        for shape in ((40, 60), (60, 40), (40, 60), (50, 50))
    ]
    together = list(labeler.label_batch(images, batch_size=4))
    assert [result.records for result in together] == [labeler(image) for image in images]
