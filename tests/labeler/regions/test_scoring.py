import dataclasses

import numpy as np
import pytest

from promerge_d2.labeler.regions.candidates import Candidates, find_candidates
from promerge_d2.labeler.regions.merge_tree import merge_tree, tree_masks
from promerge_d2.labeler.regions.scoring import (
    CUES,
    Frame,
    colour_steps,
    resemblance_to_border,
    score_candidates,
    to_probability,
)


def scene(height=20, width=24, top=7, left=9):
    """Background of one kind, and a square of another, 6 x 6 at (7, 9); two channels."""
    features = np.zeros((2, height, width), np.float32)
    features[0] = 1
    square = np.zeros((height, width), bool)
    square[top : top + 6, left : left + 6] = True
    features[:, square] = [[0], [1]]
    return features, square


def box(y, x, h, w, height=20, width=24):
    mask = np.zeros((height, width), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def candidates_of(*maps):
    return Candidates(list(maps), [merge_tree(m)[0] for m in maps], np.zeros((0, 20, 24), bool))


def score_masks(candidates, masks, frame):
    kept, cues = score_candidates(dataclasses.replace(candidates, masks=masks), frame, len(masks))
    assert kept.tolist() == list(range(len(masks)))
    return cues


def frame_of(features, image=None):
    """The frame of features of norm 1, by default of a photograph of one colour."""
    norms = np.ones(features.shape[1:], np.float32)
    return Frame.of(features, norms, np.zeros((1, 1, 3), np.uint8) if image is None else image)


def cues_of(features, *masks):
    return score_masks(candidates_of(features, features), np.stack(masks), frame_of(features))


def test_cues_of_a_perfect_object_by_hand():
    features, square = scene()
    cues = {name: cue[0] for name, cue in cues_of(features, square).items()}
    size = (36 / 480) ** 0.8 * np.exp(-0.06 * (np.log(36 / 480) + 3) ** 2)
    assert cues.pop("size") == pytest.approx(size)
    assert cues.pop("edge") == 0.5**1.5  # one colour
    assert cues.pop("product") == pytest.approx(size * 0.5**1.5)
    # inside times inside 1, inside times ring 0; the square is a region of the tree
    assert cues == pytest.approx(dict.fromkeys(set(CUES) - {"size", "edge"}, 1))


def test_wrong_masks_score_less():
    features, square = scene()
    masks = [square, box(7, 9, 6, 3), box(7, 6, 6, 12), box(1, 1, 6, 6), box(7, 11, 6, 6)]
    scores = cues_of(features, *masks)["product"]
    assert scores.argmax() == 0
    assert (scores[1:] < 0.6 * scores[0]).all()
    assert scores[3] == pytest.approx(0, abs=1e-9)  # nothing stands out there


def test_half_of_an_object_by_hand():
    """Left half: its ring has patches of the object on one side, of the rest on three."""
    features, _ = scene()
    cues = cues_of(features, box(7, 9, 6, 3))
    # rows and columns two away, and of the corners those within a knight's move
    ring = 2 * 2 * 6 + 2 * 2 * 3 + 4 * 3
    object_side = 2 * 6
    assert cues["contrast"][0] == pytest.approx(1 - object_side / ring)
    assert cues["agreement"][0] == pytest.approx((18 / 36) ** 2)
    assert cues["compactness"][0] == pytest.approx((4 * 18**0.5 / 18) ** 2.5)


def test_agreement_looks_no_further_than_the_surroundings():
    """Another object of the same kind: five patches away it is not seen, four away it is."""
    for gap, alike in ((5, 36), (4, 42)):
        features, square = scene(left=3)
        features[:, 7:13, 9 + gap - 1 : 9 + gap + 5] = np.array([0, 1])[:, None, None]
        agreement = cues_of(features, square)["agreement"][0]
        assert agreement == pytest.approx((36 / alike) ** 2)


def test_the_surroundings_are_round():
    """Off a corner, three patches down and three across are near, four across are not."""
    for across, alike in ((3, 37), (4, 36)):
        features, square = scene()
        features[:, 12 + 3, 14 + across] = (0, 1)
        agreement = cues_of(features, square)["agreement"][0]
        assert agreement == pytest.approx((36 / alike) ** 2)


def test_agreement_is_the_mean_of_two_maps():
    features, square = scene()
    flat = np.ones_like(features) * np.float32(0.5**0.5)
    cues = score_masks(candidates_of(features, flat), square[None], frame_of(features))
    assert cues["agreement"][0] == pytest.approx(((1 + 0) / 2) ** 2)
    assert cues["contrast"][0] == pytest.approx(1)  # of the first map alone


def test_support_is_asked_of_every_tree():
    """A mask that one tree has as it is, another half of it at best."""
    features, square = scene()
    split = features.copy()
    split[:, 7:13, 12:15] = np.array([0.8, -0.6], np.float32)[:, None, None]  # background's
    found = candidates_of(features, split)
    cue = score_masks(found, square[None], frame_of(features))["support"][0]
    ious = []
    for tree in found.trees:
        regions = tree_masks(tree, 20, 24, 1, 1.0)
        common = (regions & square).sum(axis=(1, 2))
        ious.append((common / (regions | square).sum(axis=(1, 2))).max())
    assert ious == pytest.approx([1, 0.5])
    assert cue == pytest.approx(0.75**2)


def test_what_covers_the_border_loses():
    features, low = scene(top=14)
    assert low[-1].sum() == 6
    cues = cues_of(features, low)
    assert cues["border"][0] == pytest.approx((1 - 6 / (2 * 20 + 2 * 24)) ** 4)
    assert cues["compactness"][0] == 1  # the border is outline as well


def test_a_part_of_the_photograph_has_its_share_of_the_border_and_of_the_area():
    features, low = scene(top=14)
    frame = dataclasses.replace(frame_of(features), resemblance=np.zeros((20, 24)), share=0.25)
    cues = score_masks(candidates_of(features, features), low[None], frame)
    assert cues["border"][0] == pytest.approx((1 - 6 / 2 / (2 * 20 + 2 * 24)) ** 4)
    share = 36 / 480 / 4
    assert cues["size"][0] == pytest.approx(share**0.8 * np.exp(-0.06 * (np.log(share) + 3) ** 2))
    assert cues["background"][0] == 1


def test_background_is_the_mean_resemblance_of_the_patches():
    features, square = scene()
    resemblance = np.zeros((20, 24))
    resemblance[7:10] = 0.4  # half of the square
    frame = dataclasses.replace(frame_of(features), resemblance=resemblance)
    cues = score_masks(candidates_of(features, features), square[None], frame)
    assert cues["background"][0] == pytest.approx(0.8**2)


def test_prominence_is_the_mean_share_of_the_largest_norm():
    features, square = scene()
    norms = np.full((20, 24), 2.0)
    norms[7:10] = 5  # half of the square
    norms[0, 0] = 10
    frame = Frame.of(features, norms, np.zeros((4, 4, 3), np.uint8))
    cues = score_masks(candidates_of(features, features), square[None], frame)
    assert cues["prominence"][0] == pytest.approx(((0.5 + 0.2) / 2) ** 2)
    nothing = Frame.of(features, np.zeros((20, 24)), np.zeros((4, 4, 3), np.uint8))
    assert (nothing.prominence == 1).all()


def test_colour_steps_by_hand():
    colours = np.zeros((2, 3, 3))
    colours[0, 1] = (3, 4, 0)
    assert colour_steps(colours)[:, :, 0].tolist() == [[5, 5, 0], [0, 0, 0]]
    assert colour_steps(colours)[:, :, 1].tolist() == [[0, 5, 0], [0, 0, 0]]


def test_edge_compares_the_outline_with_the_whole_image():
    """A square of another colour: 24 sides of patches with a step, of 916 in the image."""
    features, square = scene()
    image = np.where(square[:, :, None], 255, 0).astype(np.uint8).repeat(3, axis=2)
    edges = score_masks(
        candidates_of(features, features),
        np.stack([square, box(7, 9, 6, 3), box(1, 1, 3, 3)]),
        frame_of(features, image),
    )["edge"]
    usual = 24 / (20 * 23 + 19 * 24)
    # half of the square: 12 of its 18 sides are the square's
    shares = [1 / (1 + usual), 12 / 18 / (12 / 18 + usual), 0]
    assert edges ** (1 / 1.5) == pytest.approx(shares)


def test_edge_leaves_out_the_sides_on_the_border():
    features, low = scene(top=14)
    image = np.where(low[:, :, None], 255, 0).astype(np.uint8).repeat(3, axis=2)
    edge = score_masks(candidates_of(features, features), low[None], frame_of(features, image))[
        "edge"
    ][0]
    assert edge ** (1 / 1.5) == pytest.approx(1 / (1 + 18 / (20 * 23 + 19 * 24)))


def test_the_frame_sees_the_photograph_at_the_size_of_the_grid():
    features, _ = scene()
    small = np.random.default_rng(0).integers(0, 255, (20, 24, 3)).astype(np.uint8)
    large = small.repeat(5, axis=0).repeat(3, axis=1)
    assert np.array_equal(frame_of(features, large).colours, frame_of(features, small).colours)
    assert frame_of(features, small[:, :, ::-1].copy()).colours != pytest.approx(
        frame_of(features, small).colours
    )


def test_probabilities_do_not_care_how_much_stands_out():
    """Products a hundred times weaker have odds 100 ** 0.28 times lower; the order stays."""
    products = np.geomspace(0.3, 1e-6, 50)
    scores = to_probability(products)
    assert (np.diff(scores) < 0).all()
    odds, weaker = (s / (1 - s) for s in (scores, to_probability(products / 100)))
    assert weaker == pytest.approx(odds / 100**0.28)
    assert to_probability(np.full(3, 0.7**2.5)) == pytest.approx(np.full(3, 0.5))
    # by the twenty best alone
    assert to_probability(products[:20]) == pytest.approx(scores[:20])
    assert to_probability(products[:19])[0] != pytest.approx(scores[0])


def test_resemblance_to_the_border_is_a_share():
    features, _ = scene()
    features[:, :, :12] = np.array([1, 0], np.float32)[:, None, None]
    features[:, :, 12:] = np.array([0.6, 0.8], np.float32)[:, None, None]
    shares = resemblance_to_border(features, 0.45).reshape(20, 24)
    # half of the border is of each kind, so that half of all products are 1 and half are 0.6;
    # a patch resembles its own half
    assert np.allclose(shares, 0.5)


def test_the_border_is_two_patches_wide():
    """Rings of three kinds: 28 patches, 20 patches, and what is inside."""
    kinds = np.full((8, 8), 2)
    kinds[:2], kinds[-2:], kinds[:, :2], kinds[:, -2:] = 1, 1, 1, 1
    kinds[0], kinds[-1], kinds[:, 0], kinds[:, -1] = 0, 0, 0, 0
    features = np.eye(3, dtype=np.float32)[kinds].transpose(2, 0, 1)
    shares = resemblance_to_border(features, 0.5)  # four tenths of the products are 1, the rest 0
    expected = np.array([28 / 48, 20 / 48, 0])[kinds]
    assert np.allclose(shares.reshape(8, 8), expected)


def test_quantile_does_not_care_for_the_scale_of_cosines():
    """Cosines squashed by any rising function rank and score the background alike."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(16, 12, 12)).astype(np.float32)
    features /= np.linalg.norm(features, axis=0)
    shared = np.concatenate([features * 0.5, np.full((1, 12, 12), 0.75**0.5, np.float32)])
    a, b = resemblance_to_border(features, 0.7), resemblance_to_border(shared, 0.7)
    assert np.allclose(a, b, atol=0.02)


def noise(seed, channels=8, height=14, width=17):
    features = np.random.default_rng(seed).normal(size=(channels, height, width))
    return (features / np.linalg.norm(features, axis=0)).astype(np.float32)


def test_only_the_hopeless_are_left_out():
    found = find_candidates(noise(0), 3, 0.9)
    frame = frame_of(found.maps[0])
    everything = score_masks(found, found.masks, frame)
    kept, cues = score_candidates(found, frame, 50)
    assert len(kept) == 50
    assert (np.diff(kept) > 0).all()
    for name, values in cues.items():
        assert np.allclose(values, everything[name][kept], rtol=1e-5, atol=1e-12)
    rough = np.prod([v for k, v in everything.items() if k not in ("support", "product")], axis=0)
    assert rough[kept].min() >= np.delete(rough, kept).max()
    assert len(score_candidates(found, frame, 10**6)[0]) == len(found.masks)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_mirrored_photograph_gives_mirrored_scores(axis):
    features = noise(1)
    found, mirrored = (
        find_candidates(np.ascontiguousarray(f), 3, 0.9)
        for f in (features, np.flip(features, axis))
    )
    scores = []
    for these, flip in ((found, False), (mirrored, True)):
        masks = np.flip(these.masks, axis) if flip else these.masks
        value = score_masks(these, these.masks, frame_of(these.maps[0]))["product"]
        scores.append(dict(zip([m.tobytes() for m in masks], value, strict=True)))
    assert scores[0].keys() == scores[1].keys()
    assert all(scores[1][key] == pytest.approx(value, rel=1e-3) for key, value in scores[0].items())
