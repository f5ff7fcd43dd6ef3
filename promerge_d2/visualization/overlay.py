"""Draw masks over a photograph."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pycocotools import mask as mask_utils

from promerge_d2.utils.files import atomic_path

SOFTWARE = "promerge_d2"  # in the metadata of every picture that is drawn here
_ALPHA = 0.45
_BEGINNING = 256  # bytes of a PNG that hold its metadata


def color_of(index: int) -> tuple[int, int, int]:
    """Give the RGB colour of a mask; hues step by the golden ratio, so that neighbours differ."""
    hue = (0.02 + index * 0.618034) % 1.0
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, 1.0))
    return red, green, blue


def draw_masks(image: np.ndarray, masks: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Tint each mask and draw its outline; larger masks go below smaller ones.

    Args:
        image: (h, w, 3) uint8 RGB.
        masks: each (h, w) bool.

    Returns:
        A new (h, w, 3) uint8 picture.
    """
    picture = image.astype(np.float32)
    order = sorted(range(len(masks)), key=lambda i: -np.count_nonzero(masks[i]))
    for index in order:
        mask = np.asarray(masks[index], bool)
        picture[mask] = (1 - _ALPHA) * picture[mask] + _ALPHA * np.array(color_of(index))
    picture = picture.round().astype(np.uint8)
    thickness = max(1, round(max(image.shape[:2]) / 300))
    for index in order:
        outline, _ = cv2.findContours(
            np.asarray(masks[index], np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(picture, outline, -1, color_of(index), thickness)
    return picture


def draw_boxes(image: np.ndarray, boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Draw the outlines of boxes.

    Args:
        image: (h, w, 3) uint8 RGB.
        boxes: each ``x, y, width, height`` in pixels.

    Returns:
        A new (h, w, 3) uint8 picture.
    """
    picture = image.copy()
    thickness = max(2, round(max(image.shape[:2]) / 300))
    for index, (x, y, width, height) in enumerate(boxes):
        corners = (round(x), round(y)), (round(x + width), round(y + height))
        cv2.rectangle(picture, *corners, color_of(index), thickness)
    return picture


def draw_records(image: np.ndarray, records: Sequence[dict]) -> np.ndarray:
    """Draw records or COCO annotations with an RLE ``segmentation``; see ``draw_masks``."""
    return draw_masks(image, [mask_utils.decode(r["segmentation"]).astype(bool) for r in records])


def save_png(path: str | os.PathLike, picture: np.ndarray, drawing: bool = True) -> None:
    """Write a picture as PNG; parent folders are made.

    Args:
        path: the file.
        picture: (h, w, 3) uint8 RGB.
        drawing: say in the file that it is no photograph, see ``is_drawing``.
    """
    info = PngInfo()
    if drawing:
        info.add_text("Software", SOFTWARE)
    with atomic_path(Path(path)) as part:
        Image.fromarray(picture).save(part, format="PNG", pnginfo=info)


def is_drawing(path: str | os.PathLike) -> bool:
    """Return whether a PNG is a picture that promerge_d2 drew, by the beginning of the file."""
    try:
        with open(path, "rb") as file:
            return f"Software\0{SOFTWARE}".encode() in file.read(_BEGINNING)
    except OSError:
        return False
