"""Refiners in torch, for any device: the twins of ``mean_field`` and ``guided``.

All masks of an image go side by side. They differ from those of the compiled code by what sums in
another order round differently: a few pixels in a million.

Shape letters: P pixels, M masks, h and w rows and columns of the working image, H and W half of
them.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F

from promerge_d2.labeler.refine.crf import CRF_BILATERAL, CRF_GAUSSIAN, CRF_ITERATIONS
from promerge_d2.labeler.refine.device_lattice import DeviceLattice
from promerge_d2.labeler.refine.guided_filter import EPSILON, RADII, STEP

_TOGETHER = 16  # masks; more at once would only take more memory


@torch.no_grad()
def mean_field(image: np.ndarray, masks: np.ndarray, device: str) -> np.ndarray:
    """Infer the dense CRF, see ``crf.mean_field``.

    Args:
        image: (h, w, 3) uint8 RGB.
        masks: (M, h, w) bool.
        device: of torch, where it is computed.

    Returns:
        (M, h, w) bool.
    """
    height, width = image.shape[:2]
    place = _positions(height, width, device)
    colour = torch.from_numpy(image).to(device).float().permute(2, 0, 1).flatten(1)
    bilateral, spatial = CRF_BILATERAL, CRF_GAUSSIAN
    near = _spatial_lattice(height, width, spatial["sxy"], device)
    alike = DeviceLattice(torch.cat([place / bilateral["sxy"], colour / bilateral["srgb"]]))
    refined = np.empty_like(masks)
    for first in range(0, len(masks), _TOGETHER):
        some = slice(first, first + _TOGETHER)
        inside = torch.from_numpy(masks[some]).to(device).flatten(1).T
        unary = torch.where(inside, 1.0, -1.0)  # log odds
        odds = unary
        for _ in range(CRF_ITERATIONS):
            belief = torch.tanh(odds / 2)  # q(mask) - q(rest)
            odds = unary + bilateral["compat"] * alike.filter(belief)
            odds = odds + spatial["compat"] * near.filter(belief)
        refined[some] = (odds > 0).T.reshape(-1, height, width).cpu().numpy()
    return refined


def _positions(height: int, width: int, device: str) -> torch.Tensor:
    """Return column and row of every pixel: (2, P) float32."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).flatten(1).float().to(device)


@functools.lru_cache(maxsize=4)
def _spatial_lattice(height: int, width: int, deviation: float, device: str) -> DeviceLattice:
    """Make the lattice of positions alone, the same for all images of a size."""
    return DeviceLattice(_positions(height, width, device) / deviation)


@torch.no_grad()
def guided_border(image: np.ndarray, masks: np.ndarray, device: str) -> np.ndarray:
    """Refine masks by two guided filters, see ``guided_filter.guided_border``.

    Args:
        image: (h, w, 3) uint8 RGB.
        masks: (M, h, w) bool.
        device: of torch, where it is computed.

    Returns:
        (M, h, w) bool.
    """
    height, width = image.shape[:2]
    odd = (0, width % STEP, 0, height % STEP)
    colour = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255
    guide = F.pad(colour, odd, mode="replicate")
    small = F.avg_pool2d(guide, STEP)
    refined = np.empty_like(masks)
    windows = [(r // STEP, *_window_statistics(small, r // STEP)) for r in RADII]
    for first in range(0, len(masks), _TOGETHER):
        some = slice(first, first + _TOGETHER)
        part = torch.from_numpy(masks[some]).to(device)[:, None].float()
        for reach, count, mean, inverse in windows:
            share = F.avg_pool2d(F.pad(part, odd, mode="replicate"), STEP)
            share_mean = _sum(share, reach) / count
            covariance = [
                _sum(share * small[:, c, None], reach) / count - share_mean * mean[:, c, None]
                for c in range(3)
            ]
            slopes = [
                row[0] * covariance[0] + row[1] * covariance[1] + row[2] * covariance[2]
                for row in inverse
            ]
            constant = share_mean
            for c, slope in enumerate(slopes):
                constant = constant - slope * mean[:, c, None]
            fits = _sum(torch.cat([constant, *slopes], dim=1), reach) / count
            fits = F.interpolate(fits, scale_factor=STEP, mode="bilinear", align_corners=False)
            value = fits[:, 0]
            for c in range(3):
                value = value + fits[:, c + 1] * guide[:, c]
            part = (value > 0.5)[:, None, :height, :width].float()
        refined[some] = part[:, 0].bool().cpu().numpy()
    return refined


def _sum(pictures: torch.Tensor, reach: int) -> torch.Tensor:
    """Sums (N, C, H, W) float32 over windows of 2 * reach + 1; beyond the picture there is nothing.

    They are added up in double precision, as OpenCV does.
    """
    total = pictures.double()
    for size, pad in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
        total = F.avg_pool2d(total, size, 1, pad, divisor_override=1)
    return total.float()


def _window_statistics(
    small: torch.Tensor, reach: int
) -> tuple[torch.Tensor, torch.Tensor, list[list[torch.Tensor]]]:
    """Pixels of each window, its mean colour, and the inverse of its covariance.

    Returns:
        (1, 1, H, W), (1, 3, H, W), and 3 x 3 of (1, 1, H, W).
    """
    count = _sum(torch.ones_like(small[:, :1]), reach)
    mean = _sum(small, reach) / count
    xx, xy, xz, yy, yz, zz = (
        _sum(small[:, i, None] * small[:, j, None], reach) / count
        - mean[:, i, None] * mean[:, j, None]
        + (EPSILON if i == j else 0)
        for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    )
    a, b, c = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy
    d, e, f = xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
    rows = ((a, b, c), (b, d, e), (c, e, f))
    determinant = xx * a + xy * b + xz * c
    return count, mean, [[cofactor / determinant for cofactor in row] for row in rows]
