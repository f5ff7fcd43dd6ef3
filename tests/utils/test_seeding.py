import random

import numpy as np
import torch

from promerge_d2.utils.seeding import seed_torch, seeded_generator


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_same_key_gives_the_same_draws_whatever_was_drawn_before():
    found = {}
    for key in [(1, 7, 0), (1, 7, 1), (1, 8, 0), (2, 7, 0)]:
        for _ in range(2):
            draws()
            with seeded_generator(*key):
                found.setdefault(key, []).append(draws())
    assert all(first == second for first, second in found.values())
    assert len({value for pair in found.values() for value in pair[0]}) == 4 * 3


def test_what_was_drawn_from_before_goes_on_as_if_nothing_had_happened():
    with seeded_generator(0):
        wanted = [draws() for _ in range(2)]
    with seeded_generator(0):
        found = [draws()]
        with seeded_generator(5):
            draws()
        found.append(draws())
    assert found == wanted


def test_seed_torch():
    before = torch.get_rng_state()
    values = []
    for key in [(2, 0, 1), (2, 1, 0), (2, 0, 1)]:
        seed_torch(*key)
        values.append(float(torch.rand(())))
    torch.set_rng_state(before)
    assert values[0] == values[2] != values[1]
