import numpy as np
import pytest
import torch
import torch.nn.functional as F

from promerge_d2.modeling.relations import count_relations, relate


def tokens(*blocks):
    return [torch.tensor(block, dtype=torch.float32) for block in blocks]


@pytest.fixture
def image():
    """Two blocks of random tokens (6, 5, 7), and which patches are inside: 4 rows of 6."""
    rng = np.random.default_rng(0)
    inside = torch.zeros(5, 7, dtype=torch.bool)
    inside[:4, :6] = True
    return tokens(*rng.normal(size=(2, 6, 5, 7))), inside


def cosines(block, inside):
    """(35, 35) cosines of centred tokens, 0 for patches outside."""
    flat, known = block.flatten(1).T.double(), inside.flatten()
    flat = F.normalize(flat - flat[known].mean(0), dim=1) * known[:, None]
    return (flat @ flat.T).numpy()


def test_cosines_with_neighbours_in_order(image):
    blocks, inside = image
    maps = relate(blocks, inside).numpy()
    assert maps.shape == (count_relations(2), 5, 7)
    channel = 0
    for block in blocks:
        wanted = cosines(block, inside)
        for step in (1, 2, 4):
            for dy, dx in [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]:
                for y in range(5):
                    for x in range(7):
                        to_y, to_x = y + dy * step, x + dx * step
                        there = 0 <= to_y < 5 and 0 <= to_x < 7
                        value = wanted[7 * y + x, 7 * to_y + to_x] if there else 0
                        assert maps[channel, y, x] == pytest.approx(value, abs=1e-5)
                channel += 1


def test_number_place_and_spread_of_what_is_alike(image):
    blocks, inside = image
    maps = relate(blocks, inside).numpy()[2 * 24 :]
    alike = cosines(blocks[0], inside)
    ys, xs = np.divmod(np.arange(35), 7)
    for patch in np.flatnonzero(inside.flatten()):
        y, x = divmod(int(patch), 7)
        channel = 0
        for threshold in (0.25, 0.5):
            for reach in (3, 8, None):
                weights = inside.flatten().numpy() / (
                    1 + np.exp(-(alike[patch] - threshold) / 0.05)
                )
                if reach:
                    weights = weights * np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / (2 * reach**2))
                number, size = weights.sum(), reach or 12
                wanted = [np.log1p(number) / 2 - 1]
                means = [(weights * c).sum() / number for c in (xs, ys)]
                wanted += [(means[0] - x) / size, (means[1] - y) / size]
                for values, mean in zip((xs, ys), means, strict=True):
                    wanted.append(np.sqrt((weights * (values - mean) ** 2).sum() / number) / size)
                np.testing.assert_allclose(maps[channel : channel + 5, y, x], wanted, atol=2e-3)
                channel += 5


def test_a_patch_points_to_the_middle_of_what_it_belongs_to():
    block = torch.zeros(2, 8, 8)
    block[0, :, :4], block[1, :, 4:] = 1, 1
    place = relate([block], torch.ones(8, 8, dtype=torch.bool))[24 + 10 + 1]  # the whole image
    assert torch.allclose(place[:, 0], torch.tensor(1.5 / 12), atol=1e-3)  # from 0 to 1.5
    assert torch.allclose(place[:, 7], torch.tensor(-1.5 / 12), atol=1e-3)  # from 7 to 5.5


def test_padding_counts_for_nothing(image):
    blocks, inside = image
    before = relate(blocks, inside)
    for block in blocks:
        block[:, ~inside] = 100
    after = relate(blocks, inside)
    assert torch.equal(before, after)
    assert not after[:, ~inside].any()
