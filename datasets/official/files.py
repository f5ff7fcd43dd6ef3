"""Official files: refused where they are missing; sizes of their images."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from promerge_d2.utils.errors import UserError

_ORIENTATION = 0x0112  # the EXIF tag


def need(path: Path, page: str) -> Path:
    """Refuse a missing file or folder: which, from which page, into which folder."""
    if not path.exists():
        raise UserError(f"{path} is missing: get {path.name} from {page} into {path.parent}")
    return path


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of the upright image, from its header alone.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # PIL reports broken files by any of these
        raise UserError(f"cannot read the image {path}: {error}") from error
    return (height, width) if turned else (width, height)
