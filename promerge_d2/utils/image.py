"""Read any photograph as upright 8-bit RGB.

Frame: pixel (row, column) of the upright image, the one that detectron2 shows as well.
"""

from __future__ import annotations

import os
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from promerge_d2.utils.errors import UserError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".avif"),
    *(".ppm", ".pgm", ".gif"),
)

_ORIENTATION = 0x0112  # the EXIF tag

ImageLike = str | os.PathLike | BinaryIO | Image.Image | np.ndarray


class ImageError(UserError):
    """An image that cannot be read or has a form that is not an image."""


def load_image(image: ImageLike, apply_exif: bool = True) -> np.ndarray:
    """Read an image as RGB.

    Grey, palette, CMYK and images with an alpha channel become RGB (alpha is dropped, as
    detectron2 does). 16-bit samples are scaled to 8 bits, not clipped.

    Args:
        image: a file's path, an open file, a PIL image, or an RGB array (H, W, 3) of dtype uint8.
        apply_exif: turn the picture as its EXIF orientation says, as detectron2 does.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: the file is missing, truncated or no image, or the array has another form.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ImageError(
                f"an image array must be RGB, (H, W, 3) uint8, not {image.shape} {image.dtype}; "
                "convert it first"
            )
        return image
    name = "the PIL image" if isinstance(image, Image.Image) else f"the image {image}"
    try:
        if isinstance(image, Image.Image):  # PIL reads its file, if it has one, only now
            return _to_rgb(image, name, apply_exif)
        with warnings.catch_warnings():
            # large panoramas are legitimate input; PIL still refuses true bombs
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(image) as opened:
                return _to_rgb(opened, name, apply_exif)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # PIL reports broken files by any of these
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"cannot read {name}: {reason}") from error


def _to_rgb(image: Image.Image, name: str, apply_exif: bool) -> np.ndarray:
    if apply_exif:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey: PIL's own conversion would clip at 255
        samples = np.asarray(image).astype(np.int64)
        if samples.size and not 0 <= samples.min() <= samples.max() <= 65535:
            raise ImageError(f"{name} has 32-bit samples outside 0..65535; save it with 16 bits")
        grey = ((samples * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ImageError(f"{name} has floating-point samples of unknown range; save it as 8 bits")
    return np.array(image.convert("RGB"))


def image_size(image: str | os.PathLike | BinaryIO) -> tuple[int, int]:
    """Return width and height of the upright image, from its header alone.

    Args:
        image: a file's path, or an open file.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(image) as opened:
                width, height = opened.size
                turned = opened.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # PIL reports broken files by any of these
        raise ImageError(f"cannot read the image {image}: {error}") from error
    return (height, width) if turned else (width, height)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Squash an (H, W, 3) uint8 image to ``(height, width)`` pixels with Lanczos' filter."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
