"""All refiners by name, and what is done with the masks that they give.

Shape letters: M masks, h and w rows and columns of the working image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np

from promerge_d2.features.extractor import check_device
from promerge_d2.labeler.refine import device as on_device
from promerge_d2.labeler.refine.crf import dense_crf, import_densecrf, mean_field
from promerge_d2.labeler.refine.guided_filter import guided_border
from promerge_d2.labeler.refine.holes_and_fragments import drop_fragments, fill_holes

Refiner = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes an image (h, w, 3) uint8 RGB and masks (M, h, w) bool; gives masks (M, h, w) bool."""

REFINERS: dict[str, Refiner | None] = {
    "mean_field": mean_field,
    "dense_crf": dense_crf,
    "guided": guided_border,
    "none": None,
}
"""By the name of ``GridConfig.refine``; docs/algorithm.md says what each is."""

NUMBA = "numba"  # the code of REFINERS, in place of a device of torch

DEVICE_REFINERS: dict[str, Callable[..., np.ndarray] | None] = {
    "mean_field": on_device.mean_field,
    "guided": on_device.guided_border,
    "none": None,
}
"""Those that have a twin in torch; it takes the device as well."""


def check_refiner(name: str, device: str = NUMBA) -> None:
    """Check that a refiner can run here.

    Args:
        name: of ``REFINERS``.
        device: see ``find_refiner``.

    Raises:
        UserError: it needs a package that is not installed, or a device that is not there.
    """
    if name == "dense_crf":
        import_densecrf()
    if device != NUMBA:
        check_device(device)


def find_refiner(name: str, device: str = NUMBA) -> Refiner | None:
    """Find a refiner.

    Args:
        name: of ``REFINERS``.
        device: of torch, for the twin of ``DEVICE_REFINERS``; or ``numba``.

    Returns:
        The refiner, None for ``none``.
    """
    if device == NUMBA:
        return REFINERS[name]
    twin = DEVICE_REFINERS[name]
    return None if twin is None else functools.partial(twin, device=device)


def refine_masks(
    image: np.ndarray,
    masks: np.ndarray,
    refiner: str | Refiner,
    min_iou: float,
    device: str = NUMBA,
) -> tuple[np.ndarray, np.ndarray]:
    """Refine masks along the image's edges, fill their holes, and see which are confirmed.

    A mask is confirmed when the refined one's IoU with it is ``min_iou`` or more: what refinement
    changes beyond recognition was hardly there. With the refiner ``none`` the masks stay as they
    are, holes included, and all are confirmed.

    Args:
        image: (h, w, 3) uint8 RGB, the working image.
        masks: (M, h, w) bool, none empty.
        refiner: a name of ``REFINERS``, or a refiner.
        min_iou: in [0, 1].
        device: of a refiner that is named, see ``find_refiner``.

    Returns:
        Refined masks (M, h, w) bool, and which of them are confirmed, (M,) bool.
    """
    refine = find_refiner(refiner, device) if isinstance(refiner, str) else refiner
    if refine is None or not len(masks):
        return masks, np.ones(len(masks), bool)
    refined = refine(image, masks)
    refined = fill_holes(refined, out=None if np.may_share_memory(refined, masks) else refined)
    confirmed = np.empty(len(masks), bool)
    for index, pair in enumerate(zip(masks.view(np.uint8), refined.view(np.uint8), strict=True)):
        common = cv2.countNonZero(cv2.bitwise_and(*pair))
        confirmed[index] = common / (sum(map(cv2.countNonZero, pair)) - common) >= min_iou
    return refined, confirmed


def refine_or_keep(
    image: np.ndarray,
    masks: np.ndarray,
    refiner: str | Refiner,
    min_iou: float,
    min_fragment: float,
    device: str = NUMBA,
) -> np.ndarray:
    """Refine masks; those not confirmed stay, their holes filled. Small fragments go from all.

    Args:
        image: see ``refine_masks``.
        masks: see ``refine_masks``; its pixels stay.
        refiner: see ``refine_masks``.
        min_iou: see ``refine_masks``.
        min_fragment: see ``drop_fragments``; 0 keeps all.
        device: see ``refine_masks``.

    Returns:
        (M, h, w) bool.
    """
    refined, confirmed = refine_masks(image, masks, refiner, min_iou, device)
    for index in np.flatnonzero(~confirmed):
        fill_holes(masks[index, None], out=refined[index, None])
    if min_fragment > 0:
        refined = drop_fragments(refined, min_fragment, None if refined is masks else refined)
    return refined
