"""Seed random draws by a key: the same key, the same draws, in any process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# The first number of every key says what is drawn, so that no two purposes share a stream.
ORDER, IMAGE, STEP = range(3)


def seed_torch(*key: int) -> None:
    """Seed torch's generators, of the CPU and of all GPUs.

    Args:
        key: whole numbers from 0.
    """
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


@contextmanager
def seeded_generator(*key: int) -> Iterator[None]:
    """Draw from Python's, numpy's and torch's (CPU) global generators as a key says.

    Afterwards they go on from where they were.

    Args:
        key: whole numbers from 0.
    """
    seeds = np.random.SeedSequence(key).generate_state(3)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(int(seeds[2]))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
