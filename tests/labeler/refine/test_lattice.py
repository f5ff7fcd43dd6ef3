import numpy as np
import pytest

from promerge_d2.labeler.refine.lattice import PermutohedralLattice, blur


def kernel(features):
    """The filter as a matrix: what pixel q sends to pixel p."""
    lattice = PermutohedralLattice(features.T)
    return np.stack([lattice.filter(pixel) for pixel in np.eye(len(features), dtype=np.float32)], 1)


def gaussian(features):
    """The exact filter, by its definition."""
    square = ((features[:, None] - features[None]) ** 2).sum(axis=2)
    dense = np.exp(-square / 2)
    norm = 1 / np.sqrt(dense.sum(axis=1))
    return norm[:, None] * dense * norm[None]


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_filter_is_close_to_the_gaussian(d):
    features = np.random.default_rng(d).normal(size=(300, d)).astype(np.float32)
    ours, exact = kernel(features), gaussian(features)
    assert np.corrcoef(ours.ravel(), exact.ravel())[0, 1] > 0.9
    assert ours.sum() == pytest.approx(exact.sum(), rel=0.03)


def test_variance_of_the_blur_is_one():
    """On a fine line the filter's row has the Gaussian's standard deviation: 20 pixels."""
    line = np.arange(400, dtype=np.float32)[:, None] / 20
    row = kernel(line)[200]
    distance = np.arange(400) - 200
    assert np.sqrt((row * distance**2).sum() / row.sum()) == pytest.approx(20, rel=0.1)


def test_far_pixels_do_not_meet():
    features = np.array([[0, 0, 0], [0.1, 0, 0], [50, 50, 50]], np.float32)
    k = kernel(features)
    assert k[2, 0] == k[0, 2] == 0
    assert k[2, 2] == pytest.approx(1, rel=1e-5)  # alone, it hears itself only
    assert k[0, 1] > 0.4


def test_filter_is_linear():
    rng = np.random.default_rng(0)
    lattice = PermutohedralLattice(rng.normal(size=(2, 50)).astype(np.float32))
    a, b = rng.normal(size=(2, 50)).astype(np.float32)
    expected = 2 * lattice.filter(a) - lattice.filter(b)
    assert np.allclose(lattice.filter(2 * a - b), expected, atol=1e-5)


def test_neighbours_go_both_ways():
    features = np.random.default_rng(1).normal(size=(2, 200)).astype(np.float32)
    neighbours = PermutohedralLattice(features).neighbours
    count = neighbours.shape[1]
    linked = 0
    for before, after in neighbours.transpose(0, 2, 1):
        for v in np.flatnonzero(before < count):
            assert after[before[v]] == v
            linked += 1
        assert (after < count).sum() == (before < count).sum()
    assert linked > count


def test_a_table_that_grows_finds_what_it_had():
    """Far more lattice points than the first table holds: every pixel still has its own."""
    features = np.arange(5000, dtype=np.float32)[None] * 10
    lattice = PermutohedralLattice(features)
    assert len(np.unique(lattice.points)) == lattice.neighbours.shape[1] > 5000
    assert np.allclose(lattice.filter(np.ones(5000, np.float32)), 1, atol=1e-4)


def test_blur_by_hand():
    """Three points in a row along the only direction; half of each neighbour is added."""
    values = np.array([[1], [2], [4], [0]], np.float32)
    neighbours = np.array([[[3, 1], [0, 2], [1, 3]]], np.int32)
    lanes = (np.float32(0),)
    out = blur(values, neighbours, np.zeros_like(values), np.zeros_like(values), lanes)
    assert out[:, 0].tolist() == [2, 4.5, 5, 0]


def test_negative_features_are_as_good():
    features = np.random.default_rng(2).normal(size=(100, 2)).astype(np.float32)
    near = features - np.float32(900 * 3)  # whole cells away, up to rounding
    assert np.corrcoef(kernel(features).ravel(), kernel(near).ravel())[0, 1] > 0.95


@pytest.mark.parametrize("axis", [0, 1, 4])
def test_one_feature_may_reach_far(axis):
    """As in a strip of 100,000 x 100 pixels: 12 bits a coordinate would be too few."""
    features = np.random.default_rng(5).normal(size=(60, 5)).astype(np.float32)
    afar = np.zeros((1, 5), np.float32)
    afar[0, axis] = 2000
    with_afar = kernel(np.concatenate([features, afar]))
    assert np.allclose(with_afar[:60, :60], kernel(features), atol=1e-6)
    assert not with_afar[60, :60].any()


def test_features_too_far_apart_are_refused():
    with pytest.raises(ValueError, match="bits"):
        PermutohedralLattice(np.array([[0], [0], [0], [0], [5000]], np.float32))


def test_equal_features_give_equal_bytes():
    features = np.random.default_rng(3).normal(size=(5, 500)).astype(np.float32)
    first, second = PermutohedralLattice(features), PermutohedralLattice(features.copy())
    for name in ("points", "weights", "neighbours"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
