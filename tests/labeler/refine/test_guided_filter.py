import numpy as np
import pytest

from promerge_d2.labeler.refine.guided_filter import guided_border, guided_filter


def written_out(image, mask, radius, epsilon):
    """The filter with a fit in every window of every pixel, by least squares in float64."""
    height, width = mask.shape
    guide = image.astype(np.float64) / 255
    fits = np.zeros((height, width, 4))
    for y in range(height):
        for x in range(width):
            rows = slice(max(0, y - radius), y + radius + 1)
            columns = slice(max(0, x - radius), x + radius + 1)
            colours = guide[rows, columns].reshape(-1, 3)
            values = mask[rows, columns].ravel().astype(np.float64)
            spread = np.cov(colours.T, bias=True) + epsilon * np.eye(3)
            slope = np.linalg.solve(
                spread, (colours * values[:, None]).mean(axis=0) - colours.mean(0) * values.mean()
            )
            fits[y, x] = *slope, values.mean() - slope @ colours.mean(axis=0)
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            rows = slice(max(0, y - radius), y + radius + 1)
            columns = slice(max(0, x - radius), x + radius + 1)
            fit = fits[rows, columns].reshape(-1, 4).mean(axis=0)
            out[y, x] = fit[:3] @ guide[y, x] + fit[3]
    return out


def photograph(seed=0, height=48, width=56):
    """A red ellipse on green, with noise."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), (60.0, 150.0, 70.0))
    y, x = np.mgrid[:height, :width]
    ellipse = ((y - 22) / 13) ** 2 + ((x - 30) / 17) ** 2 < 1
    image[ellipse] = (190, 40, 60)
    return (image + rng.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8), ellipse


def test_against_least_squares_written_out():
    """The fits of every other pixel are those of doubled pixels' own photograph."""
    small, ellipse = photograph(height=36, width=42)
    image = np.kron(small, np.ones((2, 2, 1), np.uint8))
    rough = np.zeros_like(ellipse)
    rough[8:34, 14:40] = True
    got = guided_filter(image, np.kron(rough, np.ones((2, 2), bool))[None], 8, 1e-3)[0]
    wanted = written_out(small, rough, 4, 1e-3)
    sure = np.kron(np.abs(wanted - 0.5) > 0.1, np.ones((2, 2), bool))
    assert sure.mean() > 0.9
    assert np.array_equal(got[sure], np.kron(wanted > 0.5, np.ones((2, 2), bool))[sure])


def test_rough_masks_find_the_edge():
    image, ellipse = photograph()
    rough = np.zeros_like(ellipse)
    rough[8:36, 12:48] = True
    before = (rough & ellipse).sum() / (rough | ellipse).sum()
    refined = guided_border(image, rough[None])[0]
    assert (refined & ellipse).sum() / (refined | ellipse).sum() > 0.95 > before


def test_a_straight_border_on_one_colour_stays():
    image = np.full((40, 40, 3), 90, np.uint8)
    half = np.zeros((1, 40, 40), bool)
    half[:, :, :20] = True
    assert np.array_equal(guided_filter(image, half, 6), half)


@pytest.mark.parametrize("shape", [(48, 56), (47, 55)])
def test_masks_do_not_see_each_other_nor_their_place_in_the_list(shape):
    image, _ = photograph(1, *shape)
    masks = np.zeros((3, *shape), bool)
    masks[0, 8:36, 12:48] = True
    masks[1, 20:30, 2:20] = True
    masks[2, :9, 40:] = True
    together = guided_filter(image, masks, 8)
    assert together.shape == masks.shape
    for mask, refined in zip(masks, together, strict=True):
        assert np.array_equal(guided_filter(image, mask[None], 8)[0], refined)
    assert not np.shares_memory(masks, together)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mirrored_photograph_gives_mirrored_masks(axis):
    image, _ = photograph(2)
    masks = np.zeros((2, *image.shape[:2]), bool)
    masks[0, 8:36, 12:48] = True
    masks[1, 30:, 20:41] = True
    mirrored = guided_border(np.flip(image, axis), np.flip(masks, axis + 1))
    differ = guided_border(image, masks) != np.flip(mirrored, axis + 1)
    assert differ.mean() < 1e-3  # sums in another order


def test_what_is_far_from_the_border_keeps_its_side():
    rng = np.random.default_rng(3)
    image = rng.integers(0, 255, (60, 60, 3)).astype(np.uint8)
    mask = np.zeros((1, 60, 60), bool)
    mask[0, 10:50, 10:50] = True
    refined = guided_filter(image, mask, 4)[0]
    assert refined[20:40, 20:40].all()
    assert not refined[:1].any()


def test_no_masks():
    image, _ = photograph()
    assert guided_border(image, np.zeros((0, 48, 56), bool)).shape == (0, 48, 56)
