"""Masks of the patch grid to masks of pixels."""

from promerge_d2.labeler.refine.refiners import (
    DEVICE_REFINERS,
    NUMBA,
    REFINERS,
    Refiner,
    check_refiner,
    refine_masks,
    refine_or_keep,
)

__all__ = [
    "DEVICE_REFINERS",
    "NUMBA",
    "REFINERS",
    "Refiner",
    "check_refiner",
    "refine_masks",
    "refine_or_keep",
]
