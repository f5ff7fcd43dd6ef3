"""Masks of the patch grid to masks of pixels."""

from promerge_d2.labeler.refine.refiners import (
    DEVICE_REFINERS,
    NUMBA,
    REFINERS,
    Refiner,
    check_refiner,
    refine_masks,
)

__all__ = ["DEVICE_REFINERS", "NUMBA", "REFINERS", "Refiner", "check_refiner", "refine_masks"]
