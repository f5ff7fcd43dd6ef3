"""Scores and suppression in torch beside the compiled code, on torch's CPU device."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from promerge_d2.labeler import ImageFeatures, RegionsConfig, RegionsLabeler
from promerge_d2.labeler.regions import device, measures
from promerge_d2.labeler.regions.merge_tree import merge_tree
from promerge_d2.labeler.suppression import suppress_softly
from tests.helpers import photo
from tests.labeler.helpers import blob_features, lattice_features


def unit(rng, channels=8, height=14, width=17):
    features = rng.normal(size=(channels, height, width))
    return (features / np.linalg.norm(features, axis=0)).astype(np.float32)


def boxes(rng, count, height, width):
    """Masks of a box each, without a few patches; some reach the border."""
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        y, x = rng.integers(0, (height - 1, width - 1))
        mask[y : y + rng.integers(1, height), x : x + rng.integers(1, width)] = True
        holes = mask & (rng.random(mask.shape) < 0.1)
        mask &= ~holes | (mask.sum() == holes.sum())
    return masks


@pytest.mark.parametrize("shape", [(14, 17), (3, 40), (5, 5)])
def test_measures_are_those_of_the_compiled_code(monkeypatch, shape):
    monkeypatch.setattr(device, "_TOGETHER", 32)  # several parts, the last of another size
    rng = np.random.default_rng(shape[0])
    maps = [unit(rng, channels, *shape) for channels in (8, 5)]
    masks, steps, pictures = (
        boxes(rng, 70, *shape),
        rng.random((*shape, 2)),
        rng.random((2, *shape)),
    )
    steps[:, -1, 0] = steps[-1, :, 1] = 0
    ours = device.measure(masks, maps, steps, pictures, "cpu")
    theirs = measures.measure(masks, maps, steps, pictures)
    for field in dataclasses.fields(measures.Measures):
        mine, expected = getattr(ours, field.name), getattr(theirs, field.name)
        assert mine.shape == expected.shape
        assert mine.dtype == expected.dtype == np.float64
        if field.name in ("area", "agreement", "outline", "border"):
            assert np.array_equal(mine, expected), field.name
        else:
            assert np.allclose(mine, expected, rtol=1e-5, atol=1e-6), field.name
    assert np.ptp(theirs.agreement) > 0.3
    nothing = device.measure(masks[:0], maps, steps, pictures, "cpu")
    assert nothing.sums.shape == (2, 0) == (2, len(nothing.area))


def test_the_most_alike_regions_are_those_of_the_compiled_code():
    rng = np.random.default_rng(0)
    trees = [merge_tree(unit(rng))[0] for _ in range(3)]
    masks = boxes(rng, 40, 14, 17)
    ours, theirs = device.most_alike(masks, trees, "cpu"), measures.most_alike(masks, trees)
    assert np.allclose(ours, theirs, rtol=1e-6)
    assert np.ptp(ours) > 0.2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("decay", "most", "max_iou"), [(0, 99, 0.6), (4, 99, 1), (3, 5, 0.4)])
def test_suppression_is_that_of_the_compiled_code(seed, decay, most, max_iou):
    rng = np.random.default_rng(seed)
    masks, scores = boxes(rng, 60, 9, 9), rng.integers(0, 8, 60) / 8  # with ties, and zeros
    masks[40:] = masks[:20]  # and the same again
    ours = device.suppress_softly(masks, scores, max_iou, most, decay, "cpu")
    theirs = suppress_softly(masks, scores, max_iou, most, decay)
    assert ours[0].tolist() == theirs[0].tolist()
    assert ours[1] == pytest.approx(theirs[1])
    assert len(ours[0]) == (5 if most == 5 else len(ours[0])) < 60 + (max_iou == 1)
    assert len(device.suppress_softly(masks[:0], scores[:0], 0.6, 9, 4, "cpu")[0]) == 0


def both(features, image, **settings):
    """Stages of the compiled code and of torch's CPU device."""
    config = RegionsConfig(**settings)
    picture = ImageFeatures(*image.shape[:2], image, {}, torch.from_numpy(features))
    twin = dataclasses.replace(config, masks_device="cpu")
    return (RegionsLabeler.find_masks(picture, c) for c in (twin, config))


def check_equal(ours, theirs):
    assert ours.reason == theirs.reason
    if theirs.merged is None:
        return 0
    assert {m.tobytes() for m in ours.merged} == {m.tobytes() for m in theirs.merged}
    assert sorted(ours.scores) == pytest.approx(sorted(theirs.scores), rel=1e-4)
    return len(theirs.merged)


@pytest.mark.parametrize("make", [blob_features, lattice_features])
def test_random_grids_have_the_same_masks(make):
    count = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        features = make(rng, *rng.integers(6, 18, 2), 12)[None]
        image = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
        count += check_equal(*both(features, image, max_masks=20))
    assert count > 100


def test_painted_pictures_and_their_tiles_have_the_same_masks():
    for seed in range(3):
        pixels = photo(48, 72, (42, 8, 60, 24), seed)
        colours = pixels[::4, ::4].transpose(2, 0, 1).astype(np.float32)
        noise = np.random.default_rng(seed).normal(0, 9, (5, *colours.shape)).astype(np.float32)
        assert check_equal(*both(colours + noise, pixels, tiles=2, max_masks=30)) > 5


def test_golden_features_have_the_same_masks(shared_data):
    files = sorted((shared_data / "golden").glob("*_g34_*.npz"))[:3]
    assert files
    for file in files:
        features = np.load(file)["features"].astype(np.float32)[None]
        name = Path(file).name.partition("_g34")[0]
        image = np.random.default_rng(len(name)).integers(0, 256, (272, 272, 3)).astype(np.uint8)
        assert check_equal(*both(features, image)) > 50


def test_no_step_mixes_devices():
    """On made-up tensors of a GPU, which torch refuses to take together with the CPU's."""
    with FakeTensorMode():
        masks, cells = torch.ones(6, 8, 9, dtype=torch.bool, device="cuda"), 72
        steps, pictures = (
            torch.ones(*shape, dtype=torch.float64, device="cuda")
            for shape in ((8, 9, 2), (2, 8, 9))
        )
        table = device._measure(masks, [torch.ones(4, cells, device="cuda")] * 2, steps, pictures)
        assert (table.shape, table.device.type) == ((1 + 3 * 2 + 3 + 2, 6), "cuda")
        own = torch.ones(6, dtype=torch.float64, device="cuda")
        kept, final = device._choose(masks.flatten(1).float(), own, 0.5, 4, 2.0)
        assert kept.device.type == final.device.type == "cuda"
        order, area = (torch.ones(n, dtype=torch.int64, device="cuda") for n in (cells, 6))
        ranges = torch.ones(cells - 1, 2, dtype=torch.int64, device="cuda")
        found = device._most_alike(masks.flatten(1), area[:, None], order, ranges)
        assert (found.shape, found.device.type) == ((6,), "cuda")
