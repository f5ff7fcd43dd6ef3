import numpy as np
import pytest

from promerge_d2.labeler.regions.candidates import (
    SPECTRA,
    find_candidates,
    principal_maps,
    remainders,
    without_duplicates,
)
from promerge_d2.labeler.regions.merge_tree import merge_tree, tree_masks


def unit(seed, channels=12, height=9, width=11):
    features = np.random.default_rng(seed).normal(size=(channels, height, width))
    features += 3 * np.random.default_rng(seed + 1).normal(size=(channels, 1, 1))
    return (features / np.linalg.norm(features, axis=0)).astype(np.float32)


def cosines(features):
    flat = features.reshape(len(features), -1)
    return flat.T @ flat


def test_all_components_as_they_are_keep_every_cosine():
    features = unit(0)
    (same,) = principal_maps(features, ((64, 0.0),))
    assert same.shape == features.shape  # there are no more than 12
    assert np.allclose(cosines(same), cosines(features), atol=1e-5)


def test_power_minus_a_half_is_whitening():
    """Written out: rotated and scaled so that the second moments are those of white noise."""
    features = unit(1)
    flat = features.reshape(12, -1).astype(np.float64)
    moments = flat @ flat.T / flat.shape[1]
    white = np.linalg.inv(np.linalg.cholesky(moments)) @ flat
    white /= np.linalg.norm(white, axis=0)
    (found,) = principal_maps(features, ((12, -0.5),))
    assert np.allclose(cosines(found), white.T @ white, atol=1e-3)


def test_the_strongest_components_come_first():
    features = np.zeros((3, 1, 4), np.float32)
    features[1, 0] = (1, -1, 0.8, -0.8)
    features[2, 0] = (0, 0, 0.6, 0.6)
    (one,) = principal_maps(features, ((1, 0.0),))
    assert np.allclose(cosines(one), np.outer([1, -1, 1, -1], [1, -1, 1, -1]))


def test_features_of_zero_stay_zero():
    features = unit(2)
    features[:, 3, 4] = 0
    for found in principal_maps(features, SPECTRA):
        norms = np.linalg.norm(found, axis=0)
        assert norms[3, 4] == pytest.approx(0, abs=1e-6)
        norms[3, 4] = 1
        assert np.allclose(norms, 1, atol=1e-5)


def test_features_without_any_difference():
    assert not principal_maps(np.zeros((3, 4, 5), np.float32), SPECTRA)[0].any()


def test_candidates_are_the_regions_of_every_tree_once():
    features = unit(3)
    found = find_candidates(features, 3, 0.6)
    assert len(found.maps) == len(found.trees) == len(SPECTRA)
    wanted = [
        mask.tobytes()
        for features_of_tree in principal_maps(features, SPECTRA)
        for mask in tree_masks(merge_tree(features_of_tree)[0], 9, 11, 3, 0.6)
    ]
    got = [mask.tobytes() for mask in found.masks]
    assert got == list(dict.fromkeys(wanted))
    assert len(got) < len(wanted)
    areas = found.masks.sum(axis=(1, 2))
    assert areas.min() == 3
    assert areas.max() <= 0.6 * 99


def test_duplicates_leave_and_the_first_stays_in_its_place():
    a, b = np.zeros((2, 3, 3), bool)
    a[0, 0] = b[2, 2] = True
    assert np.array_equal(
        without_duplicates([np.stack([b, a, b]), np.stack([a, a])]), np.stack([b, a])
    )
    assert without_duplicates([np.zeros((0, 3, 3), bool)]).shape == (0, 3, 3)


def left_one_by_one(masks, min_patches):
    """The definition, in loops."""
    sets = [frozenset(zip(*np.nonzero(mask), strict=True)) for mask in masks]
    wanted = []
    for a in sets:
        for b in sets:
            if 20 * len(a & b) > 19 * len(b) and len(a) < 10 * len(b) and 5 * len(b) < 4 * len(a):
                left = a - b
                if len(left) >= min_patches and left not in sets and left not in wanted:
                    wanted.append(left)
    return wanted


@pytest.mark.parametrize("seed", range(8))
def test_remainders_equal_the_loops(seed):
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(20):
        (top, bottom), (left, right) = (np.sort(rng.integers(0, side, 2)) for side in (9, 12))
        masks.append(np.zeros((9, 12), bool))
        masks[-1][top : bottom + 1, left : right + 1] = True
    masks = without_duplicates([np.array(masks)])
    wanted = left_one_by_one(masks, 3)
    found = remainders(masks, 3)
    assert [frozenset(zip(*np.nonzero(mask), strict=True)) for mask in found] == wanted
    assert wanted


def test_remainders_by_hand():
    row = np.arange(10)[None]
    left, right, both, one = row < 4, (row >= 4) & (row < 7), row < 7, row == 6
    assert len(remainders(np.array([left, right, both]), 1)) == 0  # each is there
    assert (remainders(np.array([left, both]), 1) == right).all()
    assert (remainders(np.array([left, both]), 3) == right).all()
    assert len(remainders(np.array([left, both]), 4)) == 0
    assert (remainders(np.array([one, both]), 1) == (row < 6)).all()  # a seventh
    assert len(remainders(np.array([row == 0, row >= 0]), 1)) == 0  # a tenth: too small a part
    assert len(remainders(np.array([row < 8, row >= 0]), 1)) == 0  # four fifths: too large a one
    assert len(remainders(np.array([row >= 6, both]), 1)) == 0  # partly outside
    assert len(remainders(both[None], 1)) == 0
    row = np.arange(60)[None]
    part = (row >= 21) & (row < 41)  # 19 of 20 inside: not more than 0.95
    assert len(remainders(np.array([row < 40, part]), 1)) == 0
    part = (row >= 19) & (row < 41)  # 21 of 22
    assert (remainders(np.array([row < 40, part]), 1) == (row < 19)).all()
