"""Normalised cuts: graphs small enough to solve by hand, both solvers, and what ends the search."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from benchmarks.speed.released import dense_eigenvector
from promerge_d2.labeler import LABELERS, ImageFeatures, MaskCutConfig, MaskCutLabeler
from promerge_d2.labeler.maskcut import graph
from promerge_d2.labeler.maskcut.graph import alike_graph, second_eigenvector, sum_alike
from promerge_d2.labeler.maskcut.labeler import is_void, maskcut_masks, object_mask
from tests.labeler.helpers import blob_features, grid

SOLVERS = (second_eigenvector, dense_eigenvector)
EPSILON = 1e-5


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def one_hot(*rows) -> torch.Tensor:
    """Features drawn in text: patches of one letter are alike, of two are not; `.` has none."""
    cells = np.array([list(row) for row in rows])
    letters = sorted(set(cells.ravel()) - {"."})
    return torch.from_numpy(np.array([cells == letter for letter in letters], np.float32))


def cut(features, solver=second_eigenvector, **settings):
    return maskcut_masks(features, MaskCutConfig(**settings), solver)


def reference_masks(features, tau, count, void_iou, min_area):
    """The cuts written out: all of W, all of its eigenvectors, masked features set to zero."""
    channels, height, width = features.shape
    flat = features.reshape(channels, -1).T.astype(np.float64)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    masks = []
    for _ in range(count):
        weights = np.where(flat @ flat.T >= tau, 1.0, EPSILON)
        root = np.sqrt(weights.sum(axis=1))
        _, vectors = np.linalg.eigh(weights / root / root[:, None])
        x = vectors[:, -2] / root
        side = x > x.mean() if x.max() > -x.min() else x < x.mean()
        if side[[0, width - 1, -width, -1]].sum() >= 2:
            side = ~side
        beyond = np.where(side, np.abs(x - x.mean()), 0)
        seed = np.argmax(beyond > beyond.max() - 1e-6 * np.abs(x).max())  # the first of equals
        labels, _ = label(side.reshape(height, width))
        mask = labels == labels.ravel()[seed]
        flat[mask.ravel()] = 0
        if masks:
            iou = (mask & masks[-1]).sum() / (mask | masks[-1]).sum()
            if iou > void_iou or mask.mean() <= min_area:
                continue
        masks.append(mask)
    return masks


def test_alike_graph():
    features = torch.tensor([[[2.0, 0.0], [1.0, 0.0]], [[0.0, 3.0], [1.0, 0.0]]])
    alike, active = alike_graph(features, 0.7)  # cosines: 0 between axes, 0.707 to the diagonal
    assert np.triu(alike).tolist() == [[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert active.tolist() == [True, True, True, False]
    reached, _ = alike_graph(features, 0.0)  # a cosine equal to tau is enough
    assert reached[0, 1] == 1
    missed, _ = alike_graph(features, 0.71)
    assert missed[0, 2] == 0


def test_graph_of_several_panels(monkeypatch):
    features = torch.from_numpy(blob_features(np.random.default_rng(0), 9, 8))
    expected, _ = alike_graph(features, 0.3)
    monkeypatch.setattr(graph, "PANEL", 7)
    assert np.array_equal(np.triu(alike_graph(features, 0.3)[0]), np.triu(expected))


def test_sum_alike():
    alike = np.array([[1.0, 1.0, 0.0], [np.nan, 1.0, 1.0], [np.nan, np.nan, 1.0]])
    values = np.array([2.0, 3.0, 5.0])
    assert sum_alike(alike, np.array([True, True, True]), values).tolist() == [5, 10, 8]
    assert sum_alike(alike, np.array([True, False, True]), values).tolist() == [2, 0, 5]


@pytest.mark.parametrize("solver", SOLVERS)
def test_eigenvector_of_two_cliques(solver):
    """Of 4 and 12 patches: one value each, as x is orthogonal to D 1."""
    features = one_hot("aaaa", "abba", "abba", "aaaa")
    alike, active = alike_graph(features, 0.15)
    x = solver(alike, active).reshape(4, 4)
    block = grid("....", ".##.", ".##.", "....")
    ratio = -(12 * (12 + 4 * EPSILON)) / (4 * (4 + 12 * EPSILON))
    assert x[block] / x[0, 0] == pytest.approx(np.full(4, ratio), rel=1e-9)
    assert x[~block] / x[0, 0] == pytest.approx(np.ones(12), rel=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_eigenvector_with_masked_patches(solver):
    """A masked patch is joined to all, itself too, by 1e-5: its entry is the mean by 1 - lambda."""
    alike, active = alike_graph(one_hot("aaaaa", "abbba", "aaa.a", "aaaaa"), 0.15)
    active[3] = False
    x = solver(alike, active)
    weights = np.full((20, 20), EPSILON)
    letters = np.array(list("aaaaaabbbaaaa.aaaaaa"))
    letters[3] = "."
    for letter in "ab":
        weights[np.ix_(letters == letter, letters == letter)] = 1
    degrees = weights.sum(axis=1)
    similarity = (x @ weights @ x) / (x @ (degrees * x))  # 1 - lambda
    assert weights @ x == pytest.approx(similarity * degrees * x, rel=1e-9)
    assert degrees @ x == pytest.approx(0, abs=1e-10)
    assert x[[3, 13]] == pytest.approx(np.full(2, x.mean() / similarity), rel=1e-9)
    masked_share = 2 / 20  # the third eigenvalue is nearly that of the masked patches alone
    assert similarity > 0.99 > masked_share


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # the smaller clique has the larger entries
        (("aaaa", "abba", "abba", "aaaa"), grid("....", ".##.", ".##.", "....")),
        # one corner is allowed
        (("bbaa", "bbaa", "aaaa", "aaaa"), grid("##..", "##..", "....", "....")),
        # two corners are not: the other side
        (("bbbb", "aaaa", "aaaa", "aaaa"), grid("....", "####", "####", "####")),
        # of a side in two pieces, the one with the largest entry, here the first of equals
        (("aaaaa", "abaaa", "aaaaa", "aabba", "aaaaa"), grid(".....", ".#...", *3 * [5 * "."])),
        # pieces that touch at a corner are two
        (("aaaa", "abaa", "aaba", "aaaa"), grid("....", ".#..", "....", "....")),
    ],
)
def test_first_mask(rows, expected, solver):
    stages = cut(one_hot(*rows), masks=1, solver=solver)
    assert stages.merged.tolist() == [expected.tolist()]
    assert stages.reason is None


def test_object_is_on_the_side_of_the_largest_entry():
    x = np.full((3, 4), -1.0)
    x[1, 1:3] = 4, 5
    assert np.array_equal(object_mask(x), grid("....", ".##.", "...."))
    x[2, 2] = -16  # now the mean is -1 too, and what is at the mean is on neither side
    x[0, 0] = 3
    assert x.mean() == -1
    assert np.array_equal(object_mask(x), grid("....", "....", "..#."))


def test_the_other_side_has_a_seed_of_its_own():
    x = np.array([[5.0, 1, 1, 1, 5], [-1, 1, 1, -2, -2], [5, 1, 1, 1, 5]])
    # 5 is largest, but its side holds the corners; -2 is the far end of the other side
    assert np.array_equal(object_mask(x), grid(".###.", "#####", ".###."))
    x = np.array([[5.0, 4, 4, 4, 5], [-1, 4, 4, -2, -2], [5, 4, 4, 4, 5]])
    assert np.array_equal(object_mask(x), grid(".....", "...##", "....."))


def test_sign_and_length_do_not_matter():
    rng = np.random.default_rng(0)
    for _ in range(200):
        x = rng.integers(-2, 3, (4, 5)).astype(float)  # full of ties
        if x.min() == x.max():
            continue
        mask = object_mask(x)
        for factor in (-1, 1e-6, -1e3):
            noise = rng.uniform(-1e-9, 1e-9, x.shape)
            assert np.array_equal(object_mask(factor * (x + noise)), mask), x


def test_input_of_object_mask_is_left_alone():
    x = np.array([[-3.0, 1.0], [1.0, 1.0]])
    object_mask(x)
    assert x.tolist() == [[-3, 1], [1, 1]]


def test_is_void():
    before = grid("####", "....", "....", "....")
    assert not is_void(grid("##..", "....", "....", "...."), before, 0.5, 0.01)  # IoU 0.5
    assert is_void(grid("###.", "....", "....", "...."), before, 0.5, 0.01)
    assert not is_void(grid("....", "...#", "...#", "...."), before, 0.5, 1 / 16)
    assert is_void(grid("....", "...#", "....", "...."), before, 0.5, 1 / 16)


def scripted(*masks):
    """Make a solver that shows the given masks, and the list of active patches that it sees."""
    left, seen = list(masks), []

    def solve(alike, active):
        seen.append(active.copy())
        return left.pop(0).ravel() * 8.0 - 1

    return solve, seen


BACKDROP = one_hot(*4 * ["aaaaaaab"])  # something to cut, whatever is masked out below
FIRST = grid("........", ".####...", "........", "........")
REPEAT = grid("........", ".#####..", "........", "........")  # IoU 0.8 with the first
THIRD = grid("........", "........", "...##...", "........")


def test_void_masks_are_masked_out_but_not_returned():
    solver, seen = scripted(FIRST, REPEAT, THIRD)
    stages = cut(BACKDROP, solver)
    assert stages.merged.tolist() == [FIRST.tolist(), THIRD.tolist()]
    masked = [~active.reshape(4, 8) for active in seen]
    assert not masked[0].any()
    assert np.array_equal(masked[1], FIRST)
    assert np.array_equal(masked[2], FIRST | REPEAT)


def test_the_mask_before_is_the_last_that_was_not_void():
    again = FIRST | grid("........", ".....##.", "........", "........")  # 4 / 6 with the first
    solver, _ = scripted(FIRST, REPEAT, again)
    assert len(cut(BACKDROP, solver).merged) == 1
    solver, _ = scripted(FIRST, THIRD, again)  # beside the third mask it is new
    assert len(cut(BACKDROP, solver).merged) == 3


def test_the_first_mask_is_never_too_small():
    dot = grid("........", ".#......", "........", "........")
    other = grid("........", "........", "........", ".....#..")
    solver, _ = scripted(dot, other, THIRD)
    assert cut(BACKDROP, solver, min_area=1 / 32).merged.tolist() == [dot.tolist(), THIRD.tolist()]


def test_cuts_end_when_nothing_is_left_to_mask_out():
    solver, seen = scripted(FIRST, FIRST, THIRD)
    assert len(cut(BACKDROP, solver).merged) == 1
    assert len(seen) == 2


@pytest.mark.parametrize("solver", SOLVERS)
def test_at_most_n_masks_and_each_more_adds_to_the_ones_before(solver):
    features = torch.from_numpy(blob_features(np.random.default_rng(2), 12, 14))
    most = cut(features, masks=4, tau=0.5, solver=solver).merged
    assert len(most) >= 3
    for count in range(1, 4):
        fewer = cut(features, masks=count, tau=0.5, solver=solver).merged
        assert len(fewer) <= count
        assert np.array_equal(fewer, most[: len(fewer)])


def test_both_solvers_equal_the_reference_on_blocks():
    many = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        height, width = [(12, 12), (9, 14), (16, 11), (20, 20)][seed % 4]
        features = blob_features(rng, height, width)
        settings = {"tau": float(rng.choice([0.15, 0.3, 0.6])), "masks": 4, "min_area": 0.02}
        expected = reference_masks(features, settings["tau"], 4, 0.5, 0.02)
        for solver in SOLVERS:
            found = cut(torch.from_numpy(features), solver=solver, **settings).merged
            assert found.tolist() == np.array(expected).tolist(), (seed, solver)
        many += len(expected) >= 2
    assert many >= 10


def golden_files(folder, grids):
    files = sorted(file for side in grids for file in (folder / "golden").glob(f"*_g{side}_*.npz"))
    assert files
    return files


def check_solvers_on(files):
    for file in files:
        features = torch.from_numpy(np.load(file)["features"].astype(np.float32))
        fast, dense = (cut(features, solver) for solver in SOLVERS)
        assert len(fast.merged) >= 1
        assert np.array_equal(fast.merged, dense.merged), file.name


def test_solvers_agree_on_real_features(shared_data):
    check_solvers_on(golden_files(shared_data, (34,))[:4])


@pytest.mark.slow
def test_solvers_agree_on_all_real_features(shared_data):
    check_solvers_on(golden_files(shared_data, (34, 60)))


def test_solvers_agree_on_a_large_made_grid():
    """The twin of the test on real features: as many patches, noisy blocks of several sizes."""
    features = torch.from_numpy(blob_features(np.random.default_rng(4), 30, 34, channels=24))
    fast, dense = (cut(features, solver) for solver in SOLVERS)
    assert len(fast.merged) >= 1
    assert np.array_equal(fast.merged, dense.merged)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "features",
    [
        torch.ones(4, 6, 6),
        torch.zeros(4, 6, 6),
        torch.eye(36).reshape(36, 6, 6),  # no two alike
        torch.eye(36).reshape(36, 6, 6)[:1],  # one patch with a feature
        torch.ones(4, 2, 2),
        torch.zeros(4, 2, 2),
    ],
    ids=["equal", "zero", "all different", "one", "2x2 equal", "2x2 zero"],
)
@pytest.mark.parametrize("tau", [-1, 0.15, 1])
def test_nothing_to_cut(features, solver, tau):
    stages = cut(features, solver=solver, tau=tau)
    assert stages.reason == "no_cut"
    assert stages.reason in MaskCutLabeler.reasons
    assert stages.merged.shape == (0, *features.shape[1:])
    assert stages.merged.dtype == bool


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_2x2_image_of_three_kinds(solver):
    for cells in itertools.product("ab.", repeat=4):
        if set(cells) == {"."}:
            continue
        stages = cut(one_hot(cells[:2], cells[2:]), solver=solver)
        assert (stages.reason == "no_cut") == (len(stages.merged) == 0), cells
        assert all(mask.any() for mask in stages.merged), cells


def test_nearly_degenerate_cliques():
    """Islands of like sizes have eigenvalues within 1e-5 of each other."""
    features = one_hot(
        "aaaaaaaaaa",
        "abbaaaccca",
        "abbaaaccca",
        "aaaaaaaaaa",
        "addddaaaea",
        "aaaaaaaaaa",
    )
    expected = reference_masks(features.numpy() + 1e-9, 0.15, 3, 0.5, 0.01)
    for solver in SOLVERS:
        assert cut(features, solver=solver).merged.tolist() == np.array(expected).tolist(), solver


def test_same_input_same_bytes_and_input_left_alone():
    features = torch.from_numpy(blob_features(np.random.default_rng(5), 20, 20))
    kept = features.clone()
    first, second = (cut(features).merged for _ in "ab")
    assert len(first) >= 1
    assert first.dtype == bool
    assert np.array_equal(first, second)
    assert torch.equal(features, kept)


@pytest.mark.parametrize("factor", [1e-12, 64, 1e12])
def test_the_length_of_features_does_not_matter(factor):
    features = torch.from_numpy(blob_features(np.random.default_rng(6), 16, 16))
    assert np.array_equal(cut(features * factor).merged, cut(features).merged)


def prepared(features):
    return ImageFeatures(32, 64, np.zeros((32, 32, 3), np.uint8), {"features": 0.5}, features[None])


def test_labeler():
    assert LABELERS["maskcut"] is MaskCutLabeler
    config = MaskCutConfig(grid=4, refine="none")
    features = one_hot("aaaa", "abba", "abba", "aaaa")
    result = MaskCutLabeler.postprocess(prepared(features), config)
    (record,) = result.records
    assert result.reason is None
    assert record["bbox"] == [16, 8, 32, 16]
    assert record["area"] == 32 * 16
    assert set(result.seconds) == {"features", "masks", "refinement", "encoding"}


def test_labeler_gives_the_reason():
    result = MaskCutLabeler.postprocess(prepared(torch.ones(3, 4, 4)), MaskCutConfig(refine="none"))
    assert result.records == []
    assert result.reason == "no_cut"
