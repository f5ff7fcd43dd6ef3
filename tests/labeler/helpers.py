"""Small makers that the labeler's tests share."""

from __future__ import annotations

import numpy as np


def grid(*rows: str) -> np.ndarray:
    """A mask (H, W) drawn in text: `#` is set, `.` is not."""
    return np.array([[cell == "#" for cell in row] for row in rows])


def as_bytes(masks) -> list[bytes]:
    """Masks as a sorted list: equal for the same masks in any order."""
    return sorted(np.asarray(mask, dtype=bool).tobytes() for mask in masks)


def blob_features(rng: np.random.Generator, height: int, width: int, channels: int = 8):
    """Scenery of one feature, rectangles of others, and noise: all stages have work to do."""
    features = np.tile(rng.normal(size=(channels, 1, 1)), (1, height, width))
    for _ in range(rng.integers(2, 6)):
        h, w = rng.integers(2, max(3, height // 2)), rng.integers(2, max(3, width // 2))
        r, c = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        features[:, r : r + h, c : c + w] = rng.normal(size=(channels, 1, 1))
    features += rng.normal(size=features.shape) * rng.choice([0.1, 0.4, 0.7])
    return features.astype(np.float32)


def lattice_features(rng: np.random.Generator, height: int, width: int, channels: int = 8):
    """Unstructured features of small whole numbers, zero vectors and equal ones among them."""
    return rng.integers(-1, 2, (channels, height, width)).astype(np.float32)
