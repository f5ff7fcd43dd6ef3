"""Small makers that the labeler's tests share."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from promerge_d2.features import Backbone, FeatureExtractor
from promerge_d2.labeler import ProMergeConfig, ProMergeLabeler

GRID = 12  # patches a side of the stub


def grid(*rows: str) -> np.ndarray:
    """A mask (H, W) drawn in text: `#` is set, `.` is not."""
    return np.array([[cell == "#" for cell in row] for row in rows])


def label_batch(labeler, images, batch_size=1):
    """Each image's result, ``batch_size`` of them at a time through the network."""
    images, processor = iter(images), labeler.processor
    while batch := list(map(processor.preprocess, itertools.islice(images, batch_size))):
        yield from map(processor.postprocess, labeler.forward(batch))


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


class StubExtractor(FeatureExtractor):
    """Colours as features: red, green, blue of the squashed image, one pixel a patch."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.backbone = Backbone("stub", "none", 1, 3, False, "none", "none", True)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.ones(3, 1, 1), False)

    def forward(self, images):
        return images - 20.0


def stub(**settings):
    # tau_f leaves room for the colours that squashing mixes along the edges
    settings = {"grid": GRID, "stride": 2, "refine": "none", "tau_f": 0.4, **settings}
    return ProMergeLabeler(StubExtractor(), ProMergeConfig(**settings))


def squares(height, width, *boxes):
    """Red rectangles, given in twelfths of the image, on green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:] = (20, 220, 20)
    for top, bottom, left, right in boxes:
        rows = slice(top * height // GRID, bottom * height // GRID)
        columns = slice(left * width // GRID, right * width // GRID)
        pixels[rows, columns] = (220, 20, 20)
    return pixels
