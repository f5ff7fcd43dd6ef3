import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from promerge_d2.labeler import RegionsConfig, RegionsLabeler
from promerge_d2.labeler.regions.scoring import Frame
from promerge_d2.labeler.regions.tiles import (
    cut_sides,
    frame_of_tile,
    on_photograph,
    tile_windows,
)
from promerge_d2.utils.image import resize_image
from tests.helpers import TINY, photo, square, use_tiny
from tests.labeler.helpers import label_batch


def test_windows_by_hand():
    windows = tile_windows(10, 20, 2)
    assert windows == [
        (slice(0, 12), slice(0, 24)),
        (slice(0, 12), slice(16, 40)),
        (slice(8, 20), slice(0, 24)),
        (slice(8, 20), slice(16, 40)),
    ]
    assert tile_windows(10, 20, 1) == []


@pytest.mark.parametrize("tiles", [2, 3, 5])
def test_tiles_cover_the_canvas_and_overlap(tiles):
    covered = np.zeros((tiles * 10, tiles * 7), int)
    for window in tile_windows(10, 7, tiles):
        covered[window] += 1
    assert covered.min() == 1
    assert covered.max() >= 4


def test_a_window_in_pixels_by_hand():
    window = on_photograph((slice(8, 20), slice(16, 40)), (20, 40), 101, 80)
    assert window == (slice(40, 101), slice(32, 80))


def test_cut_sides_by_hand():
    cut = cut_sides((slice(0, 12), slice(16, 40)), (20, 40), 3, 4)
    assert np.array_equal(cut, [[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    cut = cut_sides((slice(8, 20), slice(0, 24)), (20, 40), 3, 4)  # the bottom left
    assert np.array_equal(cut, [[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]])
    cut = cut_sides((slice(16, 40), slice(8, 20)), (40, 20), 4, 3)  # the bottom right, upright
    assert np.array_equal(cut, [[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]])


def test_frame_of_a_tile_by_hand():
    """The first of four tiles on a wide canvas: 12 x 24 cells of 20 x 40."""
    across = (np.arange(20) + 0.5) / 20  # grows from left to right
    down = (np.arange(10) + 0.5)[:, None] / 10
    for resemblance, start, stop in ((across + 0 * down, 0.0, 0.6), (down + 0 * across, 0.0, 0.6)):
        whole = Frame(resemblance, 1 - resemblance, resemblance[:, :, None].repeat(3, axis=2))
        frame = frame_of_tile(whole, (slice(0, 12), slice(0, 24)), (20, 40), 10, 20)
        steps = resemblance * (stop - start) + start  # the same, over the tile's part
        assert np.allclose(frame.resemblance, steps, atol=0.03)
        assert np.allclose(frame.colours, steps[:, :, None], atol=0.03)
        assert np.allclose(frame.prominence, 1 - steps, atol=0.03)
    assert frame.share == pytest.approx(0.36)


def scene(size=20):
    """Two channels: a ground with a square of 8 x 8 cells at (2, 2), on a canvas of size x size."""
    features = torch.zeros(2, size, size)
    features[0] = 1
    features[:, 2:10, 2:10] = torch.tensor([0.0, 1.0])[:, None, None]
    return features


def seen_by_tiles(whole, canvas):
    """Features (5, 2, 10, 10) of four tiles of a canvas (2, 20, 20) beside those of the whole."""
    tiles = [
        torch.nn.functional.interpolate(canvas[(slice(None), *window)][None], (10, 10))
        for window in tile_windows(10, 10, 2)
    ]
    return torch.cat([whole[None], *tiles])


def test_what_only_a_tile_sees_is_found_at_its_place():
    """The whole's grid is blind; the first tile has the square in its cells 2 to 9 of 12."""
    config = RegionsConfig(tiles=2, grid=10)
    noise = torch.rand(2, 10, 10, generator=torch.Generator().manual_seed(0)) * 1e-3
    blind = torch.tensor([1.0, 0.0])[:, None, None] + noise
    stages = RegionsLabeler.grid_masks(seen_by_tiles(blind, scene()), config)
    assert stages.merged.shape[1:] == (20, 20)
    square = np.zeros((20, 20), bool)
    square[2:10, 2:10] = True
    overlap = [(mask & square).sum() / (mask | square).sum() for mask in stages.merged]
    assert max(overlap) > 0.75
    alone = RegionsLabeler.grid_masks(blind[None], RegionsConfig(grid=10))
    assert alone.merged is None or alone.merged.shape[1:] == (10, 10)


def test_regions_that_a_cut_goes_through_are_left_out():
    """A square in the middle is cut by every tile: no tile proposes its part of it."""
    config = RegionsConfig(tiles=2, grid=10)
    canvas = scene().roll((4, 4), (1, 2))  # rows and columns 6 to 13
    merged = RegionsLabeler.grid_masks(seen_by_tiles(torch.ones(2, 10, 10), canvas), config).merged
    assert len(merged)
    thing = canvas[1].numpy() > 0
    for window in tile_windows(10, 10, 2):
        part = np.zeros_like(thing)
        part[window] = thing[window]
        assert part.sum() == 36
        overlap = [(mask & part).sum() / (mask | part).sum() for mask in merged]
        assert max(overlap) < 0.8


def test_what_the_whole_and_a_tile_find_is_one_mask():
    whole = torch.nn.functional.interpolate(scene()[None], (10, 10))[0]
    stages = RegionsLabeler.grid_masks(
        seen_by_tiles(whole, scene()), RegionsConfig(tiles=2, grid=10)
    )
    square = np.zeros((20, 20), bool)
    square[2:10, 2:10] = True
    overlap = [(mask & square).sum() / (mask | square).sum() for mask in stages.merged]
    assert sum(iou > RegionsConfig().max_iou for iou in overlap) == 1
    assert (np.diff(stages.scores) <= 0).all()
    few = RegionsLabeler.grid_masks(
        seen_by_tiles(whole, scene()), RegionsConfig(tiles=2, grid=10, max_masks=2)
    )
    assert len(few.merged) == len(few.scores) == 2


@pytest.fixture
def labeler(monkeypatch, tmp_path):
    weights = use_tiny(monkeypatch, tmp_path)
    return RegionsLabeler.from_preset("best", TINY.name, weights, grid=10, tiles=2)


def test_from_photograph_to_records(labeler):
    """Tiles go through the network beside the whole, each with its own part of the photograph."""
    pixels = photo(100, 160, (10, 10, 40, 40))
    preprocessed = labeler.processor.preprocess(pixels)
    assert [view.shape for view in preprocessed.views] == [preprocessed.views[0].shape] * 5
    (output,) = labeler.forward([preprocessed])
    assert output.features.shape[:2] == (5, TINY.width)
    assert labeler.output_bytes == 4 * 5 * TINY.width * 10 * 10
    rows, columns = output.features.shape[2:]
    canvas = (2 * rows, 2 * columns)
    windows = tile_windows(rows, columns, 2)
    for tile, window in zip(output.features[1:], windows, strict=True):
        part = pixels[on_photograph(window, canvas, 100, 160)]
        alone = labeler.extractor.features(
            [resize_image(part, rows * TINY.patch, columns * TINY.patch)]
        )[0]
        assert torch.equal(tile, alone)
    masks = [mask_utils.decode(r["segmentation"]).astype(bool) for r in labeler(pixels)]
    thing = square(100, 160, 10, 10, 40, 40)
    assert max((mask & thing).sum() / (mask | thing).sum() for mask in masks) > 0.6


def test_batches_of_several_shapes_give_single_results(labeler):
    images = [
        photo(h, w, (10, 10, 40, 40), seed=h) for h, w in ((100, 160), (160, 100), (100, 160))
    ]
    together = list(label_batch(labeler, images, 3))
    assert [result.records for result in together] == [labeler(image) for image in images]
