"""All refiners by name, and what is done with the masks that they give.

Shape letters: M masks, h and w rows and columns of the working image.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from promerge_d2.labeler.refine.crf import dense_crf, import_densecrf, mean_field
from promerge_d2.labeler.refine.guided_filter import guided_border
from promerge_d2.labeler.refine.holes_and_fragments import fill_holes

Refiner = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes an image (h, w, 3) uint8 RGB and masks (M, h, w) bool; gives masks (M, h, w) bool."""

REFINERS: dict[str, Refiner | None] = {
    "mean_field": mean_field,
    "dense_crf": dense_crf,
    "guided": guided_border,
    "none": None,
}
"""By the name of ``GridConfig.refine``; docs/algorithm.md says what each is."""


def check_refiner(name: str) -> None:
    """Check that a refiner can run here.

    Args:
        name: of ``REFINERS``.

    Raises:
        UserError: it needs a package that is not installed.
    """
    if name == "dense_crf":
        import_densecrf()


def refine_masks(
    image: np.ndarray, masks: np.ndarray, refiner: str | Refiner, min_iou: float
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

    Returns:
        Refined masks (M, h, w) bool, and which of them are confirmed, (M,) bool.
    """
    refine = REFINERS[refiner] if isinstance(refiner, str) else refiner
    if refine is None or not len(masks):
        return masks, np.ones(len(masks), bool)
    refined = refine(image, masks)
    refined = fill_holes(refined, out=None if np.may_share_memory(refined, masks) else refined)
    confirmed = np.empty(len(masks), bool)
    for index, pair in enumerate(zip(masks.view(np.uint8), refined.view(np.uint8), strict=True)):
        common = cv2.countNonZero(cv2.bitwise_and(*pair))
        confirmed[index] = common / (sum(map(cv2.countNonZero, pair)) - common) >= min_iou
    return refined, confirmed
