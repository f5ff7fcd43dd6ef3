"""Official files: refused where they are missing, images never read outside their root."""

from __future__ import annotations

import reprlib
from pathlib import Path, PurePosixPath

from PIL import Image

from promerge_d2.utils.errors import UserError

_ORIENTATION = 0x0112  # the EXIF tag
_LONGEST = 255, 2000  # bytes of one name and of a path that every system takes


def need(path: Path, page: str) -> Path:
    """Refuse a missing file or folder: which, from which page, into which folder."""
    if not path.exists():
        raise UserError(f"{path} is missing: get {path.name} from {page} into {path.parent}")
    return path


def inside(root: Path, file_name: str | None, where: str) -> Path:
    """The path of an image under ``root``.

    Raises:
        UserError: there is no name, it is absolute or climbs out with ``..``, or no system could
            have it; such a file is never read.
    """
    name = PurePosixPath((file_name or "").replace("\\", "/"))
    if not name.parts:
        raise UserError(f"{where}: it has no file name")
    if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
        raise UserError(
            f"{where}: the file name {file_name!r} leads out of the image folder; names must be "
            "relative paths without '..'"
        )
    one, whole = (
        max(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        for texts in (name.parts, [str(name)])
    )
    if "\0" in str(name) or one > _LONGEST[0] or whole > _LONGEST[1]:
        raise UserError(f"{where}: {reprlib.repr(file_name)} cannot be a file name")
    return root / name


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
