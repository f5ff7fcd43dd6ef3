"""Records of COCO files: what they hold once they are read, and how masks become records.

Boxes are ``[x, y, width, height]`` (XYWH, floats), everything in pixels of the upright image.
"""

from __future__ import annotations

import os
import posixpath
import reprlib
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from promerge_d2.utils.errors import UserError

MAX_SIDE = 65535  # pixels; pycocotools counts the pixels of an image in 32 bits

ImageId = int | str
Box = tuple[float, float, float, float]


class RecordError(UserError):
    """A record that is refused.

    Attributes:
        kind: what is wrong, as a report counts it ("masks that do not decode").
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class RecordRef:
    """A record's name in messages; the text is made when it is needed.

    Attributes:
        name: the file.
        section: the list that the record is in; empty for a bare list.
        index: its place in that list.
        record: the record itself, or what is kept of it; ``id`` and ``image_id`` are shown.
    """

    name: str
    section: str
    index: int
    record: dict[str, Any]

    def __str__(self) -> str:
        place = f"{self.section}[{self.index}]" if self.section else f"record {self.index}"
        ids = [
            f"{key} {reprlib.repr(self.record[key])}"
            for key in ("id", "image_id")
            if key in self.record
        ]
        return f"{self.name}: {place}" + (f" ({', '.join(ids)})" if ids else "")


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One entry of an ``images`` section.

    Attributes:
        id: the file's id of the image.
        file_name: relative path with forward slashes, or None where the file has none.
        width: pixels; None only in predictions that do not say.
        height: pixels; None only in predictions that do not say.
        reason: why a labeler found no mask; None where the file does not say.
    """

    id: ImageId
    file_name: str | None
    width: int | None
    height: int | None
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.file_name} (id {self.id!r})" if self.file_name else f"id {self.id!r}"

    @property
    def name(self) -> str:
        """The file name; empty where the file has none."""
        return self.file_name or ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels; 0 where the file does not say."""
        return self.height or 0, self.width or 0

    def record(self) -> dict[str, Any]:
        """Return the entry as it is written."""
        more = {} if self.reason is None else {"reason": self.reason}
        size = {"width": self.width, "height": self.height}
        return {"id": self.id, "file_name": self.file_name, **size, **more}


@dataclass(frozen=True, slots=True)
class Instance:
    """One object of a ground truth or of pseudo-labels, or one prediction.

    Attributes:
        where: names the record in messages.
        image_id: the id of its image.
        box: XYWH, pixels.
        rle: the mask as compressed RLE, ``counts`` as bytes; None without one (or not drawn).
        area: pixels; for an object the file's own figure (it decides the size class), else of
            the mask, else of the box.
        crowd: objects only: a region whose predictions are not counted.
        score: higher is surer; 1.0 where the file does not say.
        polygons: the mask as the file has it, without stray parts; None if it has an RLE or none.
        empty: whether nothing can be seen of it: the mask has no pixel, or there is no mask and the
            box has no area.
    """

    where: RecordRef
    image_id: ImageId
    box: Box
    rle: dict[str, Any] | None
    area: float
    crowd: bool = False
    score: float = 1.0
    polygons: list[list[float]] | None = None
    empty: bool = False

    @property
    def has_mask(self) -> bool:
        """Whether the record has a mask."""
        return self.rle is not None or self.polygons is not None

    def segmentation(self) -> list[list[float]] | dict[str, Any] | None:
        """Return the mask as JSON holds it: the file's polygons, or a compressed RLE."""
        if self.polygons is not None or self.rle is None:
            return self.polygons
        return {"size": list(self.rle["size"]), "counts": self.rle["counts"].decode()}

    def mask_record(self) -> dict[str, Any]:
        """Make the record of an object that has a mask; box and area are the mask's."""
        if self.rle is None:
            raise ValueError(f"{self.where} has no mask that was drawn")
        return rle_record(self.rle, self.score)


def mask_record(mask: np.ndarray, score: float = 1.0) -> dict[str, Any]:
    """Make the record of a mask.

    Example: the mask ``[[0, 1], [0, 1]]`` has area 2 and bbox ``[1.0, 0.0, 1.0, 2.0]``.

    Args:
        mask: (h, w) bool, not empty.
        score: how likely it is an object, in [0, 1].

    Returns:
        ``segmentation`` (COCO RLE), ``area`` (pixels), ``bbox`` (XYWH in pixels, floats) and
        ``score``.
    """
    return rle_record(mask_api.encode(np.asfortranarray(mask, dtype=np.uint8)), score)


def rle_record(rle: dict[str, Any], score: float) -> dict[str, Any]:
    """Make the record of a compressed mask (``counts`` as bytes), see ``mask_record``."""
    return {
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
        "area": int(mask_api.area(rle)),
        "bbox": [float(side) for side in mask_api.toBbox(rle)],
        "score": score,
    }


def slashes(name: str) -> str:
    r"""Return a path with ``/`` between folders and without ``.`` and doubled slashes.

    Example:
        >>> slashes(".\\train\\a.jpg")
        'train/a.jpg'
    """
    return posixpath.normpath(name.replace("\\", "/")) if name else name


def name_key(name: str) -> str:
    """Return what two names have in common if they are names of one file: NFC, slashes."""
    return unicodedata.normalize("NFC", slashes(name))


def spellings(name: str) -> list[str]:
    r"""Return the names under which a file may be on disk, the likeliest first.

    A name with ``\`` may be of a file with that character, or of one in a folder; systems differ
    in how they write letters with accents (NFC, NFD).
    """
    if name.isascii() and "\\" not in name:
        return [name]
    found = [name, slashes(name)]
    found += [unicodedata.normalize(form, each) for form in ("NFC", "NFD") for each in found[:2]]
    return list(dict.fromkeys(found))


def locate(root: str | os.PathLike, name: str) -> str:
    """Return the path of an image under ``root``, spelled as it is on disk if it is there."""
    paths = [os.path.join(root, spelling) for spelling in spellings(name)]
    if len(paths) == 1:
        return paths[0]  # the disk is asked only where it can matter
    return next((path for path in paths if os.path.exists(path)), paths[0])
