"""The labeler from an image to records."""

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from promerge_d2.labeler import ProMergeConfig, ProMergeLabeler, RegionsConfig, RegionsLabeler
from promerge_d2.labeler.base import ImageFeatures
from promerge_d2.labeler.refine.resize import upsample_smoothly
from promerge_d2.labeler.regions.candidates import find_candidates
from promerge_d2.labeler.similarity import l2_normalize
from tests.labeler.helpers import grid, label_batch


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
    assert (
        overlaps[~np.eye(len(masks), dtype=bool)].max(initial=0) <= RegionsConfig().max_iou + 0.02
    )  # seen on every other pixel
    prepared = labeler.processor.preprocess(image)
    assert prepared.views[0].shape[0] * 2 == pytest.approx(prepared.views[0].shape[1], rel=0.15)


def test_images_of_several_shapes_go_in_one_batch(tiny):
    labeler = RegionsLabeler.from_preset("best", *map(str, tiny), grid=12)
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 255, (*shape, 3)).astype(np.uint8)
        for shape in ((40, 60), (60, 40), (40, 60), (50, 50))
    ]
    together = list(label_batch(labeler, images, 4))
    assert [result.records for result in together] == [labeler(image) for image in images]


def test_regions_that_stand_out_from_nothing_are_no_masks():
    stages = RegionsLabeler.grid_masks(torch.ones(1, 3, 6, 6), RegionsConfig())
    assert len(stages.regions)
    assert stages.merged is None
    assert stages.reason == "no_scored_regions"
    features = torch.zeros(1, 2, 12, 12)
    features[0, 0] = 1
    features[0, :, 4:8, 4:8] = torch.tensor([0.0, 1.0])[:, None, None]
    stages = RegionsLabeler.grid_masks(features, RegionsConfig())
    assert stages.reason is None
    assert 0 < len(stages.merged) < len(stages.regions)
    assert stages.scores.min() > 0


def test_remainders_of_the_best_compete():
    features = torch.rand(1, 8, 14, 14, generator=torch.Generator().manual_seed(1))
    config = RegionsConfig(grid=14)
    stages = RegionsLabeler.grid_masks(features, config)
    unit = l2_normalize(features[0] - features[0].mean(dim=(1, 2), keepdim=True)).numpy()
    trees = find_candidates(unit, config.min_patches, config.max_share).masks
    assert np.array_equal(stages.regions[: len(trees)], trees)
    more = stages.regions[len(trees) :]
    assert len(more)
    kept = {mask.tobytes() for mask in stages.merged}
    assert kept & {mask.tobytes() for mask in more}
    assert kept & {mask.tobytes() for mask in trees}
    assert kept <= {mask.tobytes() for mask in stages.regions}


def test_no_region_of_a_size_asked_for():
    stages = RegionsLabeler.grid_masks(torch.rand(1, 3, 4, 4), RegionsConfig(min_patches=100))
    assert stages.reason == "no_regions"


def test_masks_that_are_not_confirmed_stay_as_they_were():
    """The release, and so the other labelers, drop them."""
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    image[8:32, 8:32] = (200, 30, 30)
    masks = np.zeros((2, 10, 10), bool)
    masks[0, 2:8, 2:8] = True  # the square
    masks[1, 4:6, 4:6] = True  # a hole in it, which the CRF fills up
    config = RegionsConfig(refine="mean_field")
    refined, kept = RegionsLabeler.refine(image, masks, config)
    assert kept.tolist() == [0, 1]
    assert refined[0].sum() > upsample_smoothly(masks, 40, 40)[0].sum()  # the corners
    assert np.array_equal(refined[1], upsample_smoothly(masks, 40, 40)[1])
    refined_square = np.zeros((40, 40), bool)
    refined_square[8:32, 8:32] = True
    dropped, kept = ProMergeLabeler.refine(image, masks, ProMergeConfig(refine_min_iou=0.7))
    assert kept.tolist() == [0]
    assert np.array_equal(dropped[0], refined_square)


def refine(masks, refiner, **settings):
    """Refine masks of the grid at its own size, as ``RegionsLabeler`` does."""
    image = np.zeros((*masks.shape[1:], 3), np.uint8)
    return RegionsLabeler.refine(image, masks, RegionsConfig(**settings), refiner)


def test_masks_kept_unrefined_have_no_holes():
    ring = grid(".....", ".###.", ".#.#.", ".###.", ".....")[None]
    refined, _ = refine(ring, lambda image, masks: np.zeros_like(masks))
    assert np.array_equal(refined[0], grid(".....", ".###.", ".###.", ".###.", "....."))


def test_small_fragments_leave():
    mask = np.zeros((1, 8, 20), bool)
    mask[0, 1:7, 1:11] = True  # 60
    mask[0, 4, 13:18] = True  # 5, below a tenth
    refined, _ = refine(mask, lambda image, masks: masks)
    assert refined.sum() == 60
    refined, _ = refine(mask, lambda image, masks: masks, min_fragment=0.08)
    assert refined.sum() == 65


def test_of_masks_that_grow_into_each_other_the_better_one_stays():
    masks = np.zeros((3, 8, 20), bool)
    masks[0, :4, :10] = masks[1, 4:, :10] = masks[2, :, 12:] = True

    def grow(image, masks):
        grown = masks.copy()
        grown[:2, :, :10] = True
        return grown

    refined, kept = refine(masks, grow, refine_min_iou=0.5)
    assert kept.tolist() == [0, 2]
    assert refined[0].sum() == 80
    _, kept = refine(masks, grow, refine_min_iou=0.5, max_iou=1.0)
    assert kept.tolist() == [0, 1, 2]


def test_a_quarter_more_on_the_grid_and_as_many_as_asked_for_in_the_end():
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 8, 14, 14))).float()
    config = RegionsConfig(max_masks=8, refine="none")
    masks = RegionsLabeler.grid_masks(features, config).merged
    assert len(masks) == 10
    _, kept = RegionsLabeler.refine(np.zeros((112, 112, 3), np.uint8), masks, config)
    assert kept.tolist() == list(range(8))


def test_masks_follow_the_colours_of_the_photograph():
    """Two squares that the features tell from the ground alike, one of which the eye sees."""
    features = torch.zeros(1, 3, 20, 20)
    features[0, 0] = 1
    features[0, :, 3:8, 3:8] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    features[0, :, 12:17, 12:17] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    for seen in (slice(3, 8), slice(12, 17)):
        image = np.full((20, 20, 3), 90, np.uint8)
        image[seen, seen] = (250, 40, 40)
        stages = RegionsLabeler.find_masks(
            ImageFeatures(20, 20, image, {}, features), RegionsConfig(grid=20)
        )
        assert stages.merged[0, seen, seen].all()
        assert stages.merged[0].sum() == 25
        assert stages.scores[0] > 1.1 * stages.scores[1]
