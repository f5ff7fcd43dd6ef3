"""Records of masks, as COCO results and annotations hold them."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as mask_utils


def mask_record(mask: np.ndarray, score: float = 1.0) -> dict:
    """The record of a mask.

    Example: the mask ``[[0, 1], [0, 1]]`` has area 2 and bbox ``[1.0, 0.0, 1.0, 2.0]``.

    Args:
        mask: (h, w) bool, not empty.
        score: how likely it is an object, in [0, 1].

    Returns:
        ``segmentation`` (COCO RLE), ``area`` (pixels), ``bbox`` (XYWH in pixels, floats) and
        ``score``.
    """
    return rle_record(mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8)), score)


def rle_record(rle: dict, score: float) -> dict:
    """The record of a compressed mask (``counts`` as bytes), see ``mask_record``."""
    return {
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
        "area": int(mask_utils.area(rle)),
        "bbox": [float(side) for side in mask_utils.toBbox(rle)],
        "score": score,
    }
