import numpy as np
import pytest

from promerge_d2.labeler.regions.scoring import Frame, resemblance_to_border, score_masks


def scene(height=20, width=24):
    """Background of one kind, and a square of another, 6 x 6 at (7, 9); two channels."""
    features = np.zeros((2, height, width), np.float32)
    features[0] = 1
    square = np.zeros((height, width), bool)
    square[7:13, 9:15] = True
    features[:, square] = [[0], [1]]
    return features, square


def box(y, x, h, w, height=20, width=24):
    mask = np.zeros((height, width), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def test_cues_of_a_perfect_object_by_hand():
    features, square = scene()
    cues = {
        name: cue[0]
        for name, cue in score_masks(features, square[None], Frame.of(features)).items()
    }
    assert cues["contrast"] == pytest.approx(1)  # inside times inside 1, inside times ring 0
    assert cues["agreement"] == pytest.approx(1)
    assert cues["border"] == 1
    assert cues["background"] == pytest.approx(1)
    assert cues["size"] == pytest.approx((36 / 480) ** 0.35)
    assert cues["score"] == pytest.approx((36 / 480) ** 0.35)


def test_wrong_masks_score_less():
    features, square = scene()
    masks = np.stack([square, box(7, 9, 6, 3), box(7, 6, 6, 12), box(1, 1, 6, 6), box(7, 11, 6, 6)])
    scores = score_masks(features, masks, Frame.of(features))["score"]
    assert scores.argmax() == 0
    assert (scores[1:] < 0.6 * scores[0]).all()
    assert scores[3] == pytest.approx(0, abs=1e-9)  # nothing stands out there


def test_half_of_an_object_by_hand():
    """Left half: the ring (2 patches) has 12 patches of the object and 32 of the rest."""
    features, _ = scene()
    half = box(7, 9, 6, 3)
    cues = score_masks(features, half[None], Frame.of(features))
    ring = 10 * 7 - 18 - 4 * 1  # an ellipse of 5 x 5 leaves out parts of the corners
    inside_ring = cues["contrast"][0]
    assert 1 - inside_ring == pytest.approx(12 / ring, abs=0.06)
    assert cues["agreement"][0] == pytest.approx((18 / 36) ** 2)


def test_what_covers_the_border_loses():
    features, square = scene()
    low = square.copy()
    features_low = np.roll(features, 7, axis=1)
    low = np.roll(low, 7, axis=0)
    assert low[-1].sum() == 6
    cues = score_masks(features_low, low[None], Frame.of(features_low))
    assert cues["border"][0] == pytest.approx((1 - 6 / (2 * 20 + 2 * 24 - 4)) ** 2)


def test_resemblance_to_the_border_is_a_share():
    features, _ = scene()
    features[:, :, :12] = np.array([1, 0], np.float32)[:, None, None]
    features[:, :, 12:] = np.array([0.6, 0.8], np.float32)[:, None, None]
    shares = resemblance_to_border(features, 0.5).reshape(20, 24)
    # half of the border is of each kind, so that half of all products are 1 and half are 0.6;
    # the median is between and a patch resembles its own half
    assert np.allclose(shares, 0.5)


def test_quantile_does_not_care_for_the_scale_of_cosines():
    """Cosines squashed by any rising function rank and score the background alike."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(16, 12, 12)).astype(np.float32)
    features /= np.linalg.norm(features, axis=0)
    shared = np.concatenate([features * 0.5, np.full((1, 12, 12), 0.75**0.5, np.float32)])
    a, b = resemblance_to_border(features, 0.7), resemblance_to_border(shared, 0.7)
    assert np.allclose(a, b, atol=0.02)


def test_what_is_alike_but_far_away_does_not_count_against_agreement():
    """Another object of the same kind, seven patches from the square; its surroundings are four."""
    features, square = scene()
    features[:, 0:2, 22:24] = np.array([0, 1], np.float32)[:, None, None]
    cues = score_masks(features, square[None], Frame.of(features))
    assert cues["agreement"][0] == pytest.approx(1)
    features[:, 7:9, 17:19] = np.array([0, 1], np.float32)[:, None, None]  # two patches from it
    cues = score_masks(features, square[None], Frame.of(features))
    assert cues["agreement"][0] == pytest.approx((36 / 40) ** 2)


def test_the_border_is_two_patches_wide():
    """Rings of three kinds: 28 patches, 20 patches, and what is inside."""
    kinds = np.full((8, 8), 2)
    kinds[:2], kinds[-2:], kinds[:, :2], kinds[:, -2:] = 1, 1, 1, 1
    kinds[0], kinds[-1], kinds[:, 0], kinds[:, -1] = 0, 0, 0, 0
    features = np.eye(3, dtype=np.float32)[kinds].transpose(2, 0, 1)
    shares = resemblance_to_border(features, 0.5)  # four tenths of the products are 1, the rest 0
    expected = np.array([28 / 48, 20 / 48, 0])[kinds]
    assert np.allclose(shares.reshape(8, 8), expected)


def test_a_tile_covers_a_share_of_the_border_and_of_the_photograph():
    """A quarter of the photograph: its grid's patches are half as long at the border."""
    features, _ = scene()
    low = box(14, 9, 6, 6)
    whole = Frame.of(features)
    tile = Frame(whole.resemblance, whole.edge, share=0.25)
    cues = score_masks(features, low[None], tile)
    assert cues["border"][0] == pytest.approx((1 - 6 * 0.5 / (2 * 20 + 2 * 24 - 4)) ** 2)
    assert cues["size"][0] == pytest.approx((36 * 0.25 / 480) ** 0.35)
    nowhere = Frame(whole.resemblance, np.zeros_like(whole.edge), share=0.25)
    assert score_masks(features, low[None], nowhere)["border"][0] == 1
