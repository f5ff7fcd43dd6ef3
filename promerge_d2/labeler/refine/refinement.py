"""Refinement: masks of the patch grid to masks of pixels (promerge.md A3 and C1 step 10).

Shape letters: M masks, H and W rows and columns of the patch grid, h and w of the working image
on which the refiner runs.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from promerge_d2.labeler.components import label_components
from promerge_d2.utils.errors import UserError

Refiner = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes an image (h, w, 3) uint8 RGB and masks (M, h, w) bool; gives masks (M, h, w) bool."""

CRF_ITERATIONS = 10
CRF_GAUSSIAN = {"sxy": 3, "compat": 7}  # pixels, weight
CRF_BILATERAL = {"sxy": 50, "srgb": 5, "compat": 10}  # pixels, levels of 0..255, weight
CRF_MARGIN = 75  # pixels: masks that grow further are changed beyond recognition (our own)
CRF_CONFIDENCE = float(np.exp(1) / (1 + np.exp(1)))  # softmax of {0, 1}: 0.73 for the mask's side


def dense_crf(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Fully connected CRF with the released parameters, exact (pydensecrf).

    The lattice depends on the image alone: it is built once and serves all of its masks, which
    changes no bit of the result.

    Args:
        image: (h, w, 3) uint8 RGB.
        masks: (M, h, w) bool.

    Returns:
        (M, h, w) bool.

    Raises:
        UserError: pydensecrf is not installed.
    """
    densecrf = _import_densecrf()
    height, width = image.shape[:2]
    crf = densecrf.DenseCRF2D(width, height, 2)
    crf.addPairwiseGaussian(**CRF_GAUSSIAN)
    crf.addPairwiseBilateral(rgbim=np.ascontiguousarray(image), **CRF_BILATERAL)
    refined = np.empty_like(masks)
    for index, mask in enumerate(masks):
        foreground = np.where(mask.ravel(), CRF_CONFIDENCE, 1 - CRF_CONFIDENCE)
        probability = np.stack([1 - foreground, foreground]).astype(np.float32)
        crf.setUnaryEnergy(-np.log(probability))
        marginals = np.array(crf.inference(CRF_ITERATIONS))
        refined[index] = marginals.argmax(axis=0).reshape(height, width)
    return refined


def mean_field(image: np.ndarray, masks: np.ndarray, margin: int | None = None) -> np.ndarray:
    """The same dense CRF, inferred for all masks of an image at once; several times faster.

    Args:
        image: (h, w, 3) uint8 RGB.
        masks: (M, h, w) bool.
        margin: see ``infer_masks``.

    Returns:
        (M, h, w) bool, as ``dense_crf``'s but for a few pixels in a million.
    """
    # here, since numba takes a second to import
    from promerge_d2.labeler.refine.mean_field import infer_masks

    return infer_masks(image, masks, CRF_ITERATIONS, CRF_GAUSSIAN, CRF_BILATERAL, margin)


def mean_field_near(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """``mean_field`` of the pixels near each mask only; faster for many, mostly small masks.

    Args:
        image: (h, w, 3) uint8 RGB.
        masks: (M, h, w) bool.

    Returns:
        (M, h, w) bool, where no mask has grown further than ``CRF_MARGIN``.
    """
    return mean_field(image, masks, CRF_MARGIN)


def _import_densecrf():  # noqa: ANN202 - a module without types
    try:
        from pydensecrf import densecrf
    except ModuleNotFoundError as error:
        raise UserError(
            "the refiner dense_crf needs pydensecrf: pip install pydensecrf2 (it is compiled, "
            "which needs a C++ compiler), or do without: --refine none"
        ) from error
    return densecrf


REFINERS: dict[str, Refiner | None] = {
    "mean_field": mean_field,
    "mean_field_near": mean_field_near,
    "dense_crf": dense_crf,
    "none": None,
}


def check_refiner(name: str) -> None:
    """Raise a ``UserError`` unless the refiner exists and can run here."""
    if name not in REFINERS:
        raise UserError(f"no refiner is named {name!r}; known: {', '.join(REFINERS)}")
    if name == "dense_crf":
        _import_densecrf()


UPSAMPLINGS = ("nearest", "linear")


def upsample(masks: np.ndarray, height: int, width: int, how: str = "nearest") -> np.ndarray:
    """Masks (M, H, W) bool to (M, height, width) bool.

    With ``nearest`` pixel r of the result shows row ``floor(r * H / height)``; ``linear``
    interpolates between the centres of patches and cuts at a half.
    """
    if how == "linear":
        soft = [
            cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
            for mask in masks
        ]
        return np.array(soft).reshape(-1, height, width) > 0.5
    rows = np.arange(height) * masks.shape[1] // height
    columns = np.arange(width) * masks.shape[2] // width
    return masks[:, rows][:, :, columns]


def fill_holes(masks: np.ndarray) -> np.ndarray:
    """Masks (M, h, w) bool with all that they enclose (4-connected) made part of them."""
    filled = masks.copy()
    for mask in filled:
        x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
        box = mask[y : y + height, x : x + width]  # holes lie within
        rest = np.pad(~box, 1, constant_values=True)
        _, labels = cv2.connectedComponents(rest.view(np.uint8), connectivity=4)
        box |= (labels != labels[0, 0])[1:-1, 1:-1]
    return filled


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a mask (h, w) bool with PIL's bicubic filter and cut at half of the maximum."""
    if mask.shape == (height, width):
        return mask
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)) >= 128


def drop_fragments(masks: np.ndarray, min_share: float) -> np.ndarray:
    """Masks (M, h, w) bool without the components below a share of the mask's largest one."""
    labels, areas = label_components(masks)
    # labels rise from mask to mask
    last = np.maximum.accumulate(labels.max(axis=(1, 2), initial=0))
    first = np.concatenate([[0], last[:-1]]) + 1
    is_kept = np.zeros(len(areas), bool)
    for start, stop in zip(first, last + 1, strict=True):
        mine = areas[start:stop]
        is_kept[start:stop] = mine >= min_share * mine.max(initial=0)
    return is_kept[labels]


def refine_masks(
    image: np.ndarray,
    masks: np.ndarray,
    refiner: str | Refiner,
    min_iou: float,
    upsampling: str = "nearest",
    unconfirmed: str = "drop",
) -> tuple[np.ndarray, np.ndarray]:
    """Refine masks along the image's edges.

    Holes are filled. A mask is not confirmed when the refined one's IoU with it is below
    ``min_iou``. With the refiner ``none`` the masks stay as they are.

    Args:
        image: (h, w, 3) uint8 RGB, the working image.
        masks: (M, H, W) bool on the patch grid.
        refiner: a name of ``REFINERS``, or a refiner.
        min_iou: in [0, 1].
        upsampling: see ``upsample``.
        unconfirmed: ``"drop"`` masks that are not confirmed, or ``"keep"`` them unrefined, their
            holes filled.

    Returns:
        Kept masks (K, h, w) bool and their indices (K,) in ``masks``.
    """
    before = upsample(masks, *image.shape[:2], upsampling)
    refine = REFINERS[refiner] if isinstance(refiner, str) else refiner
    if refine is None or not len(masks):
        return before, np.arange(len(masks))
    after = fill_holes(refine(image, before))
    union = np.count_nonzero(before | after, axis=(1, 2))
    confirmed = np.count_nonzero(before & after, axis=(1, 2)) / union >= min_iou
    if unconfirmed == "keep":
        after[~confirmed] = fill_holes(before[~confirmed])
        return after, np.arange(len(masks))
    kept = np.flatnonzero(confirmed)
    return after[kept], kept
