"""The one way to see an image: its pixels as upright 8-bit RGB, and its upright size.

Labelling, validation, training, detection and every check of a size go through here, so that a mask
lies on the pixels that it was made from. Frame: pixel (row, column) of the upright image. For JPEG,
PNG and WebP that is what detectron2 shows; TIFFs, which Pillow turns when it loads them, detectron2
turns twice.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
from typing import BinaryIO, cast

import numpy as np
from PIL import Image, ImageFile

from promerge_d2.utils.errors import UserError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".avif"),
    *(".ppm", ".pgm", ".gif"),
)

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {  # what makes the stored picture upright, by the EXIF standard
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNDOES = {6: 8, 8: 6}  # the other turns undo themselves
_TIFF_SIZE = 0x0100, 0x0101  # tags: width and height as stored

# Bits of a sample that cameras, scanners and microscopes have. What is kept in 16 or 32 bits is
# taken to have the fewest of these that hold its largest value.
_DEPTHS = (8, 10, 12, 14, 16)

# what Pillow raises for broken files
_BROKEN = (
    *(ArithmeticError, EOFError, LookupError, OSError, RuntimeError, SyntaxError),
    *(TypeError, ValueError, struct.error, Image.DecompressionBombError),
)

ImageLike = str | os.PathLike | BinaryIO | Image.Image | np.ndarray


class ImageError(UserError):
    """An image that cannot be read or has a form that is not an image."""


def load_image(image: ImageLike, apply_exif: bool = True) -> np.ndarray:
    """Read an image as RGB.

    Grey, palette, CMYK and images with an alpha channel become RGB (alpha is dropped, as
    detectron2 does). Samples of 16 and 32 bits and floating-point ones are scaled by what the image
    holds, all channels alike: from 8, 10, 12, 14 or 16 bits, the fewest that hold its largest
    value, or from 0..1 where no floating-point sample is above 1. Of CMYK, and of grey with alpha,
    only the higher 8 of 16 bits can be read.

    Args:
        image: a file's path, an open file, a PIL image, or an RGB array (H, W, 3) of dtype uint8.
        apply_exif: turn the picture as its EXIF orientation says; an orientation that is none of
            the standard's eight turns nothing.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: the file is missing, truncated or no image, samples are negative, above 65535,
            no numbers, or too low for the bits that can be read, or the array has another form.
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
    except _BROKEN as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"cannot read {name}: {reason}") from error


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
                if opened.format == "TIFF":  # Pillow may have exchanged them already
                    tags = getattr(opened, "tag_v2")  # noqa: B009 - of TIFFs only
                    width, height = (int(tags[tag]) for tag in _TIFF_SIZE)
                turned = _orientation(opened) >= 5
    except _BROKEN as error:
        raise ImageError(f"cannot read the image {image}: {error}") from error
    return (height, width) if turned else (width, height)


def _to_rgb(image: Image.Image, name: str, apply_exif: bool) -> np.ndarray:
    """Turn a picture upright, or leave it as it is stored, and convert it."""
    raw = _raw_mode(image)
    deep = raw.endswith((";16B", ";16L", ";16N"))
    low = _low_bytes(image) if deep else None
    image = _turn(image, apply_exif)
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow's own conversion clips at 255
        grey = _to_8_bits(np.asarray(image), name)
        return np.repeat(grey[:, :, None], 3, axis=2)
    pixels = np.array(image.convert("RGB"))
    if low is not None:
        pixels = _to_8_bits(
            pixels.astype(np.uint16) << 8 | np.asarray(_turn(low, apply_exif).convert("RGB")), name
        )
    elif deep and pixels.max(initial=0) < 16:
        raise ImageError(
            f"{name} has {raw.partition(';')[0]} samples of 16 bits, of which the higher 8 hold "
            "next to nothing; save them as 8 bits, or as RGB of 16"
        )
    return pixels


def _raw_mode(image: Image.Image) -> str:
    """Return how the samples of a file that is not loaded yet are stored, in Pillow's words."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    args = tiles[0][3]
    return str(args[0] if isinstance(args, tuple) and args else args)


def _low_bytes(image: Image.Image) -> Image.Image | None:
    """Open a file with colours of 16 bits a second time, for the lower bytes of its samples.

    Pillow gives the higher byte of each. Told the other order of bytes, it gives the lower one.
    """
    raw = _raw_mode(image)
    order = raw[-1].replace("N", "L" if sys.byteorder == "little" else "B")
    if raw.partition(";")[0] not in ("RGB", "RGBA", "RGBX"):
        return None
    file = cast(BinaryIO, cast(ImageFile.ImageFile, image).fp)
    place = file.tell()
    file.seek(0)
    low = Image.open(io.BytesIO(file.read()))
    file.seek(place)
    other = raw[:-1] + {"L": "B", "B": "L"}[order]
    low.tile = [
        tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
        for tile in low.tile
    ]
    return low


def _turn(image: Image.Image, apply_exif: bool) -> Image.Image:
    """Load a picture, upright or as it is stored."""
    stored = _orientation(image) if image.format == "TIFF" else 1
    if stored >= 5:  # Pillow 13 maps such a file into memory with its sides exchanged
        vars(image)["filename"] = ""
    image.load()
    left = _orientation(image)  # 1 where Pillow has turned it: TIFFs
    turn = left
    if not apply_exif:
        turn = 1 if stored == left else _UNDOES.get(stored, stored)
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def _orientation(image: Image.Image) -> int:
    """Return the orientation, 1 to 8, that a picture's EXIF asks for; 1 where that is broken."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
        return int(orientation) if orientation in _TURNS else 1
    except Exception:  # noqa: BLE001 - Pillow parses EXIF with next to no checks of its own
        return 1


def _to_8_bits(samples: np.ndarray, name: str) -> np.ndarray:
    """Scale samples (H, W) or (H, W, 3) of integers or floats to uint8 by what they hold."""
    low, high = samples.min(initial=0), samples.max(initial=0)
    most = [2**depth - 1 for depth in _DEPTHS]
    if not 0 <= low <= high <= most[-1]:  # false for what is not a number
        raise ImageError(
            f"{name} has samples of {low} to {high}; save them as 8 bits, or within 0..65535"
        )
    if samples.dtype.kind == "f" and high <= 1:
        largest = 1
    else:
        largest = next(value for value in most if high <= value)
    return (samples * (255 / largest) + 0.5).astype(np.uint8)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Squash an (H, W, 3) uint8 image to ``(height, width)`` pixels with Lanczos' filter."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
