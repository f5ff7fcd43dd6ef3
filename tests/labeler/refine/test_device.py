"""The refiners in torch beside the compiled ones, on torch's CPU device."""

import numpy as np
import pytest
import torch

from promerge_d2.labeler.refine import crf, device, guided_filter
from promerge_d2.labeler.refine.device_lattice import DeviceLattice
from promerge_d2.labeler.refine.lattice import PermutohedralLattice
from promerge_d2.labeler.refine.refiners import refine_masks
from promerge_d2.labeler.refine.resize import upsample
from promerge_d2.utils.image import load_image, resize_image
from tests.labeler.refine.test_mean_field import iou, scene


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_the_lattice_is_that_of_the_compiled_code(d):
    rng = np.random.default_rng(d)
    features = (3 * rng.normal(size=(d, 700))).astype(np.float32)
    features[:, :50] = np.round(features[:, :50])  # corners and ties
    ours, theirs = DeviceLattice(torch.from_numpy(features)), PermutohedralLattice(features)
    assert np.array_equal(ours.points, theirs.points)
    assert np.array_equal(ours.neighbours, theirs.neighbours.transpose(0, 2, 1))
    assert np.allclose(ours.weights, theirs.weights, rtol=1e-6, atol=1e-7)
    signals = rng.normal(size=(700, 3)).astype(np.float32)
    expected = np.stack([theirs.filter(signal) for signal in signals.T], 1)
    assert np.allclose(ours.filter(torch.from_numpy(signals)), expected, atol=1e-5)


def test_the_lattice_alone_is_a_bilateral_filter():
    """The docstring's example: a step of colour stays, noise on either side goes."""
    rng = np.random.default_rng(0)
    picture = torch.zeros(3, 24, 32)
    picture[:, :, 16:] = 1
    noisy = picture + torch.from_numpy(rng.normal(0, 0.03, picture.shape)).float()
    y, x = torch.meshgrid(torch.arange(24) / 8, torch.arange(32) / 8, indexing="ij")
    lattice = DeviceLattice(torch.cat([torch.stack([x, y]), noisy / 0.1]).flatten(1), False)
    smooth = lattice.filter(noisy.flatten(1).T) / lattice.filter(torch.ones(24 * 32, 1))
    error = (smooth.T.reshape(3, 24, 32) - picture).abs()
    assert error.mean() < 0.5 * (noisy - picture).abs().mean()
    assert error.max() < 0.2


def test_features_that_spread_too_far_are_refused():
    with pytest.raises(ValueError, match="63"):
        DeviceLattice(torch.full((5, 3), 1e6))


def test_mean_field_agrees_with_the_compiled_code_and_with_pydensecrf():
    pytest.importorskip("pydensecrf")
    for seed in range(2):
        image, masks = scene(90, 120, seed)
        twin = device.mean_field(image, masks, "cpu")
        assert (twin != masks).any()
        assert iou(twin, crf.mean_field(image, masks)).min() >= 0.999
        assert iou(twin, crf.dense_crf(image, masks)).min() >= 0.999


@pytest.mark.parametrize("shape", [(64, 90), (61, 83), (61, 90)])
def test_guided_border_agrees_with_the_compiled_code(shape):
    image, masks = scene(*shape, 1)
    masks = np.concatenate([masks] * 4)  # more than go together
    masks[3:5, :, :9] = True  # up to the picture's border
    twin = device.guided_border(image, masks, "cpu")
    assert (twin != masks).any()
    assert iou(twin, guided_filter.guided_border(image, masks)).min() >= 0.999


@pytest.mark.parametrize("name", ["mean_field", "guided"])
def test_random_grids_give_the_same_masks(name):
    rng = np.random.default_rng(0)
    same = []
    for seed in range(6):
        image, _ = scene(96, 96, seed)
        coarse = np.zeros((4, 12, 12), bool)
        for mask in coarse:
            y, x, h, w = rng.integers((0, 0, 3, 3), (8, 8, 8, 8))
            mask[y : y + h, x : x + w] = True
        before = upsample(coarse, 96, 96)
        ours, theirs = (refine_masks(image, before, name, 0.5, on) for on in ("cpu", "numba"))
        assert np.array_equal(ours[1], theirs[1])  # the same ones are confirmed
        same.extend(iou(ours[0], theirs[0]))
    assert min(same) >= 0.999


def test_bytes_repeat_and_nothing_is_nothing():
    image, masks = scene(40, 50, 3)
    for twin in (device.mean_field, device.guided_border):
        before = masks.copy()
        first = twin(image, masks, "cpu")
        assert np.array_equal(masks, before)
        assert np.array_equal(twin(image, masks, "cpu"), first)
        assert twin(image, masks[:0], "cpu").shape == (0, 40, 50)


@pytest.mark.parametrize("name", ["mean_field", "guided"])
def test_photographs_give_the_same_masks(shared_data, name):
    """On 480 x 480 pixels as labelling does."""
    files = sorted((shared_data / "data/coco/val2017").glob("*.jpg"))[:3]
    assert files
    for file in files:
        image = resize_image(load_image(file), 480, 480)
        masks = np.kron(scene(60, 60, len(file.name))[1][:3], np.ones((1, 8, 8), bool)) > 0
        ours, theirs = (refine_masks(image, masks, name, 0.5, on) for on in ("cpu", "numba"))
        assert np.array_equal(ours[1], theirs[1])
        assert iou(ours[0], theirs[0]).min() >= 0.999
