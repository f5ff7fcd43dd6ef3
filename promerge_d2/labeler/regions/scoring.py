"""Scores: how likely a mask is an object, from the features alone (our own).

No label went into the rules; their few constants were fixed on images apart from those that any
reported figure is of (docs/algorithm.md).

Shape letters: C channels, H and W rows and columns of the patch grid, M masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_RING = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))  # two patches around a mask
_SURROUNDINGS = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))  # four patches
_AREA_POWER = 0.35
_BORDER = 2  # patches


@dataclass(frozen=True)
class Frame:
    """The photograph that a patch grid lies on.

    Attributes:
        resemblance: (H * W,) in [0, 1], see ``resemblance_to_border``.
        edge: (H, W) bool, the patches at the photograph's border.
        share: of the photograph that the grid covers.
    """

    resemblance: np.ndarray
    edge: np.ndarray
    share: float = 1.0

    @classmethod
    def of(cls, unit: np.ndarray, background_quantile: float = 0.7) -> Frame:
        """Make the frame of a grid that covers the whole photograph.

        Args:
            unit: (C, H, W) float32 normalised features.
            background_quantile: see ``resemblance_to_border``.

        Returns:
            The frame.
        """
        edge = np.ones(unit.shape[1:], bool)
        edge[1:-1, 1:-1] = False
        return cls(resemblance_to_border(unit, background_quantile), edge)


def score_masks(unit: np.ndarray, masks: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
    """Score masks on the patch grid.

    A score is the product of five cues, each in [0, 1]:

    * ``contrast``: mean feature inside, times itself less the mean feature of the ring around: it
      is high when the mask is of one kind and its surroundings are of another;
    * ``agreement``: the mask's IoU, in its surroundings, with the patches whose product with its
      mean feature is above the middle between inside and ring: what a prompt with that feature
      would find there;
    * ``background``: one less the mean share of border patches that the mask's patches resemble;
    * ``border``: one less the share of the image's border that the mask covers;
    * ``size``: area share to the power of 0.35: small regions are plenty, and seldom objects.

    Cosines are compared with quantiles of the image's own, never with fixed numbers, so that the
    scores carry over between backbones.

    Args:
        unit: (C, H, W) float32 normalised features.
        masks: (M, H, W) bool, none empty.
        frame: the photograph around.

    Returns:
        (M,) float64 by the name of each cue, and their product under ``score``.
    """
    count, height, width = masks.shape
    flat = unit.reshape(len(unit), -1)
    inside = masks.reshape(count, -1)
    area = np.count_nonzero(inside, axis=1)
    ring = _dilate(masks, _RING).reshape(count, -1) & ~inside
    mean = _means(flat, inside, area)
    ring_mean = _means(flat, ring, np.maximum(np.count_nonzero(ring, axis=1), 1))
    coherence = (mean * mean).sum(axis=1)
    across = (mean * ring_mean).sum(axis=1)

    surroundings = _dilate(masks, _SURROUNDINGS).reshape(count, -1)
    alike = (mean @ flat > ((coherence + across) / 2)[:, None]) & surroundings
    common = np.count_nonzero(alike & inside, axis=1)

    at_edge = np.count_nonzero(masks[:, frame.edge], axis=1) * np.sqrt(frame.share)
    whole_edge = 2 * (height + width) - 4  # patches, of a grid that covers the photograph
    cues = {
        "contrast": np.clip(coherence - across, 0, 1),
        "agreement": (common / (np.count_nonzero(alike, axis=1) + area - common)) ** 2,
        "background": (1 - inside @ frame.resemblance / area) ** 2,
        "border": (1 - at_edge / whole_edge) ** 2,
        "size": (area * frame.share / (height * width)) ** _AREA_POWER,
    }
    cues = {name: np.asarray(cue, np.float64) for name, cue in cues.items()}
    return {**cues, "score": np.prod(list(cues.values()), axis=0)}


def resemblance_to_border(unit: np.ndarray, quantile: float) -> np.ndarray:
    """Return the share of border patches that each patch resembles.

    Args:
        unit: (C, H, W) float32 normalised features.
        quantile: a patch resembles a border patch when their product is above this quantile of
            all such products in the image.

    Returns:
        (H * W,) float64 in [0, 1].
    """
    _, height, width = unit.shape
    flat = unit.reshape(len(unit), -1)
    border = np.ones((height, width), bool)
    border[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    products = flat[:, border.ravel()].T @ flat
    return (products > np.quantile(products, quantile)).mean(axis=0)


def _dilate(masks: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.array([cv2.dilate(mask.view(np.uint8), kernel) for mask in masks]).view(bool)


def _means(flat: np.ndarray, inside: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Average features over masks (M, H * W): (M, C)."""
    return inside.astype(np.float32) @ flat.T / areas[:, None]
