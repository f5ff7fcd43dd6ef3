"""Photographs at the size of a screen: made when they are seen, and kept on the disk."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from PIL import Image

from promerge_d2.pseudo_labels.inputs import TarImage, find_image
from promerge_d2.studio.outlines import fit
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path, path_inside
from promerge_d2.utils.image import ImageError, load_image

SIDES = {"small": 360, "large": 1600}  # pixels of the longer side
_AT_ONCE = 2  # photographs that are decoded: one of 48 megapixels takes 150 MB


class PictureMissing(UserError):
    """There is no such photograph below the folder."""


class Pictures:
    """The photographs of a label file.

    Args:
        root: the folder that its names start from; nothing outside is read.
        folder: for the small ones.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self._folder = folder
        self._turns = threading.BoundedSemaphore(_AT_ONCE)

    def find(self, name: str) -> Path | TarImage:
        """Find a photograph by its name in the label file.

        Raises:
            UserError: the name leads out of the folder.
            PictureMissing: it is not there.
        """
        path_inside(self.root, name, "label file")
        found = find_image(self.root, name)
        if found is None:
            raise PictureMissing(f"there is no photograph {name} in {self.root}; name --images")
        return found

    def jpeg(self, name: str, side: str) -> Path:
        """Return the JPEG of a photograph, upright, at a key of ``SIDES``; make it if need be.

        Raises:
            UserError: as ``find``.
            ImageError: it cannot be read.
        """
        found = self.find(name)
        status = os.stat(found.tar if isinstance(found, TarImage) else found)
        key = f"{name}\0{status.st_size}\0{status.st_mtime_ns}"
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        target = self._folder / side / digest[:2] / f"{digest}.jpg"
        if not target.is_file():
            with self._turns:
                self._make(found, target, SIDES[side])
        return target

    @staticmethod
    def _make(found: Path | TarImage, target: Path, side: int) -> None:
        file = found.open() if isinstance(found, TarImage) else found
        try:
            with Image.open(file) as image:
                # JPEG alone: decoded at half the size or less, but not below what is shown
                image.draft("RGB", (side, side))
                pixels = load_image(image)
        except (OSError, Image.DecompressionBombError) as error:
            raise ImageError(f"cannot read {found}: {error}") from error
        small = Image.fromarray(pixels)
        height, width = fit(pixels.shape[0], pixels.shape[1], side)
        if small.size != (width, height):
            small = small.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2)
        with atomic_path(target) as part:
            small.save(part, "JPEG", quality=84)
