"""What a patch has in common with those around it, as channels beside its token (our own).

A token says what a patch shows; which patches belong together, a detector would have to learn from
many images. Cosines of tokens say it outright, for anything: point prompts and merging go by them
as well.

Shape letters: L blocks, D width of a token, H and W rows and columns of the patch grid, K channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

STEPS = (1, 2, 4)  # to neighbours, in patches
THRESHOLDS = (0.25, 0.5)  # of the cosine: alike above
SOFTNESS = 0.05  # of a threshold
REACHES = (3.0, 8.0, None)  # standard deviations of the window, in patches; None: the whole image
WHOLE = 12.0  # what distances are divided by in the whole image

_OFFSETS = [
    (dy * step, dx * step)
    for step in STEPS
    for dy, dx in itertools.product((-1, 0, 1), repeat=2)
    if dy or dx
]


def count_relations(blocks: int) -> int:
    """Return K for the tokens of so many blocks."""
    return blocks * len(_OFFSETS) + 5 * len(THRESHOLDS) * len(REACHES)


def relate(tokens: Sequence[torch.Tensor], inside: torch.Tensor) -> torch.Tensor:
    """Describe how each patch of an image resembles the others.

    For each block: the cosine with the neighbours one, two and four patches away in eight
    directions. For the first block also, for each threshold and window, the patches that are alike:
    how many, and their mean place and standard deviations relative to the patch, in window sizes.

    Args:
        tokens: of L blocks, each (D, H, W) float32; the last block of the network first.
        inside: (H, W) bool, which patches show the image; padding is like nothing.

    Returns:
        (K, H, W) float32, 0 outside the image.
    """
    mask = inside.to(tokens[0])
    alike = [_normalise(block, mask) for block in tokens]
    maps = [channel for block in alike for channel in _neighbours(block)]
    return torch.stack([*maps, *_surroundings(alike[0], mask)]) * mask


def _normalise(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Subtract the image's mean, and scale each token (D, H, W) to length 1."""
    mean = (tokens * mask).sum((1, 2), keepdim=True) / mask.sum().clamp(min=1)
    return F.normalize(tokens - mean, dim=0) * mask


def _neighbours(tokens: torch.Tensor) -> list[torch.Tensor]:
    """Cosines (H, W) with the patches at each offset; 0 beyond the image."""
    height, width = tokens.shape[1:]
    edge = max(STEPS)
    padded = F.pad(tokens, (edge,) * 4)
    return [
        (tokens * padded[:, edge + dy :, edge + dx :][:, :height, :width]).sum(0)
        for dy, dx in _OFFSETS
    ]


def _surroundings(tokens: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Number, mean place and spread, each (H, W), of the patches that each one resembles."""
    height, width = mask.shape
    y, x = torch.meshgrid(
        torch.arange(height, device=mask.device, dtype=mask.dtype),
        torch.arange(width, device=mask.device, dtype=mask.dtype),
        indexing="ij",
    )
    x, y = x.flatten(), y.flatten()
    powers = torch.stack([torch.ones_like(x), x, y, x**2, y**2], dim=1)
    distances = (x[:, None] - x) ** 2 + (y[:, None] - y) ** 2
    flat = tokens.flatten(1)
    cosines = flat.T @ flat
    maps = []
    for threshold in THRESHOLDS:
        alike = torch.sigmoid((cosines - threshold) / SOFTNESS) * mask.flatten()
        for reach in REACHES:
            near = alike if reach is None else alike * torch.exp(-distances / (2 * reach**2))
            size = reach or WHOLE
            number, *sums = (near @ powers).unbind(1)
            number = number.clamp(min=1e-3)
            mean_x, mean_y, square_x, square_y = (total / number for total in sums)
            maps += [
                torch.log1p(number) / 2 - 1,
                (mean_x - x) / size,
                (mean_y - y) / size,
                (square_x - mean_x**2).clamp(min=0).sqrt() / size,
                (square_y - mean_y**2).clamp(min=0).sqrt() / size,
            ]
    return [channel.view(height, width) for channel in maps]
