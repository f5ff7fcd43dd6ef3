import numpy as np
import pytest

from promerge_d2.labeler.regions.merge_tree import merge_tree, tree_masks


def unit(features):
    return (features / np.linalg.norm(features, axis=0, keepdims=True)).astype(np.float32)


def written_out(features):
    """Average linkage of neighbouring regions by brute force; regions as frozen sets."""
    _, height, width = features.shape
    flat = features.reshape(len(features), -1).T.astype(np.float64)
    cosine = flat @ flat.T
    regions = [frozenset([p]) for p in range(height * width)]
    found = []

    def touch(a, b):
        return any(
            q in b
            for p in a
            for q in (
                p - width,
                p + width,
                p - 1 if p % width else -1,
                p + 1 if (p + 1) % width else -1,
            )
        )

    while len(regions) > 1:
        pairs = [
            (cosine[np.ix_(sorted(a), sorted(b))].mean(), a, b)
            for i, a in enumerate(regions)
            for b in regions[i + 1 :]
            if touch(a, b)
        ]
        similarity, a, b = max(pairs, key=lambda pair: pair[0])
        regions = [region for region in regions if region not in (a, b)] + [a | b]
        found.append((a | b, similarity))
    return found


@pytest.mark.parametrize("shape", [(3, 4), (5, 5), (2, 9)])
@pytest.mark.parametrize("seed", range(4))
def test_against_average_linkage_written_out(shape, seed):
    features = unit(np.random.default_rng(seed).normal(size=(6, *shape)))
    children, similarity = merge_tree(features)
    expected = written_out(features)
    masks = tree_masks(children, *shape, 2, 1.0).reshape(len(children), -1)
    assert [frozenset(np.flatnonzero(mask)) for mask in masks] == [region for region, _ in expected]
    assert similarity == pytest.approx([value for _, value in expected], abs=1e-5)


def test_by_hand():
    """Four patches in a row: the two left are alike, the two right are alike, the pairs are not."""
    features = unit(np.array([[[1, 1, 0.1, 0]], [[0, 0.05, 1, 1]]]))
    children, similarity = merge_tree(features)
    assert children.tolist() == [[2, 3], [0, 1], [4, 5]] or children.tolist() == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]
    assert similarity[2] < 0.1 < 0.9 < similarity[1]
    masks = tree_masks(children, 1, 4, 2, 0.5)
    assert sorted(masks[:, 0].tolist()) == [[False, False, True, True], [True, True, False, False]]


def test_regions_nest_and_are_connected():
    features = unit(np.random.default_rng(3).normal(size=(8, 11, 7)))
    masks = tree_masks(merge_tree(features)[0], 11, 7, 2, 1.0).reshape(-1, 77)
    assert len(masks) == 76
    assert masks[-1].all()
    common = masks.astype(int) @ masks.T.astype(int)
    areas = masks.sum(axis=1)
    nested = np.minimum(areas[:, None], areas[None])
    assert ((common == 0) | (common == nested)).all()


def test_sizes_are_limits():
    features = unit(np.random.default_rng(4).normal(size=(8, 10, 10)))
    areas = tree_masks(merge_tree(features)[0], 10, 10, 5, 0.4).sum(axis=(1, 2))
    assert len(areas)
    assert areas.min() >= 5
    assert areas.max() <= 40


def test_many_neighbours_fit():
    """One region that runs along everything else: its list of neighbours outgrows the first."""
    features = np.random.default_rng(5).normal(size=(4, 30, 30))
    features[:, ::2] = features[:, :1, :1] * 9
    masks = tree_masks(merge_tree(unit(features))[0], 30, 30, 2, 1.0)
    assert len(masks) == 899
    assert masks[-1].all()


def test_equal_input_gives_equal_bytes():
    features = unit(np.random.default_rng(6).normal(size=(8, 12, 12)))
    first, second = merge_tree(features), merge_tree(features.copy())
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))
