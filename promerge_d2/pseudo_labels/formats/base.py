"""What the formats share: an image with its masks, and what is said of what was lost."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np
from pycocotools import mask as mask_api

from promerge_d2.coco.fields import NO_MASK, Tally
from promerge_d2.coco.records import MAX_SIDE, RecordError
from promerge_d2.coco.rle import UNREADABLE, clean_polygons, draw
from promerge_d2.pseudo_labels.inputs import find_size
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import path_inside
from promerge_d2.utils.image import ImageError

LABEL = "object"  # the one class
UNKNOWN_KIND = "shapes that are no masks"  # kinds of RecordError
BROKEN = "entries that cannot be read"
NO_SIZE = "images without a size"


@dataclass(frozen=True, slots=True)
class LabelledMask:
    """One mask in any format.

    Attributes:
        rle: compressed RLE of the whole image, ``counts`` as bytes.
        score: in [0, 1]; 1.0 where the file has none.
        label: what the file calls it.
    """

    rle: dict[str, Any]
    score: float = 1.0
    label: str = LABEL


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image in any format.

    Attributes:
        name: relative path with forward slashes, as our label files have it.
        width: of the upright image, pixels.
        height: likewise.
        masks: on it.
    """

    name: str
    width: int
    height: int
    masks: Sequence[LabelledMask] = ()


@dataclass
class Changes:
    """What a format could not keep.

    Attributes:
        masks: masks that are not the same any more.
        pixels: how many pixels of them differ.
    """

    masks: int = 0
    pixels: int = 0

    def note(self, pixels: int) -> None:
        """Add a mask of which so many pixels differ."""
        self.masks += pixels > 0
        self.pixels += pixels


@dataclass(frozen=True)
class Order:
    """What a writer is told.

    Attributes:
        folder: to write into; empty.
        images: how many images will come.
        valid_share: part of the images that is for validation, where the format tells them apart.
        changes: takes what is lost.
    """

    folder: Path
    images: int
    valid_share: float = 0.0
    changes: Changes = field(default_factory=Changes)

    def for_validation(self, number: int) -> bool:
        """Return whether the image of a number, from 0, is for validation: evenly spaced ones."""
        return int((number + 1) * self.valid_share) > int(number * self.valid_share)


@dataclass(frozen=True)
class Source:
    """What a reader is told.

    Attributes:
        path: file or folder to read.
        image_root: folder of the photographs, for formats that do not hold their sizes.
        left_out: counts what cannot be used.
        leave_out_damaged: whether what would be refused is left out and counted instead.
    """

    path: Path
    image_root: Path | None = None
    left_out: Tally = field(default_factory=Tally)
    leave_out_damaged: bool = False

    def refuse(self, error: RecordError) -> None:
        """Raise the error of a record, or count it where damaged records are left out."""
        if not self.leave_out_damaged:
            raise error
        self.left_out.note(error.kind, error)

    def without_mask(self, where: object) -> None:
        """Count an object that is only a box."""
        self.left_out.note(NO_MASK, where)

    def size(self, name: str, *folders: Path) -> tuple[int, int] | None:
        """Return width and height of a photograph, found in one of the folders or the image root.

        None, and counted, where damaged records are left out and it is not there.
        """
        for folder in (*folders, self.image_root):
            try:
                size = None if folder is None else find_size(folder, name)
            except ImageError as error:
                self.refuse(RecordError(NO_SIZE, f"{name}: {error}"))
                return None
            if size is not None:
                return size
        self.refuse(
            RecordError(
                NO_SIZE,
                f"{self.path}: the photograph {name} is not there, and the format does not hold "
                "its size; name its folder with --image-root",
            )
        )
        return None


Add = Callable[[LabelledImage], str]  # writes an image's labels; says where its photograph belongs


@dataclass(frozen=True)
class Format:
    """A format that label files are exported to and imported from.

    Attributes:
        name: of ``--to`` and ``--from``.
        title: what it is, for people.
        write: begins the files; the value takes images one by one.
        read: yields the images of a file or a folder.
        keeps_scores: whether scores come back.
    """

    name: str
    title: str
    write: Callable[[Order], AbstractContextManager[Add]]
    read: Callable[[Source], Iterator[LabelledImage]]
    keeps_scores: bool = True


def new_file(path: Path, image: LabelledImage) -> TextIO:
    """Open a text file of an image that must not exist yet.

    Raises:
        UserError: another image has it already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return open(path, "x", encoding="utf-8", newline="\n")
    except FileExistsError as error:
        raise UserError(
            f"{image.name}: the format names the labels of an image without the image's suffix, "
            f"and another image has {path.name} in that folder already; rename one of the two"
        ) from error
    except OSError as error:
        raise UserError(f"{image.name}: cannot write {path.name}: {error.strerror}") from error


def with_suffix(name: str, suffix: str) -> str:
    """Return an image's name with another suffix.

    Example:
        >>> with_suffix("a.b/c.d.jpg", ".txt")
        'a.b/c.d.txt'
    """
    return os.path.splitext(name)[0] + suffix


def checked_name(name: Any, where: object) -> str:
    """Return a name that stays under the images' folder, with forward slashes.

    Raises:
        UserError: it does not, or is none.
    """
    if not isinstance(name, str):
        raise UserError(f"{where}: {reprlib.repr(name)} is no file name")
    return path_inside(Path(), name, str(where)).as_posix()


def side(value: Any, key: str, where: object) -> int:
    """Return a width or height in pixels, which may be text.

    Raises:
        RecordError: it is none.
    """
    try:
        number = int(value) if not isinstance(value, bool) else 0
    except (TypeError, ValueError):
        number = 0
    if not 0 < number <= MAX_SIDE:
        raise RecordError(
            NO_SIZE,
            f"{where}: {key} is {reprlib.repr(value)}; it must be an integer from 1 to {MAX_SIDE}",
        )
    return number


def score_of(value: Any, where: object) -> float:
    """Return a score, which may be text; 1.0 for none.

    Raises:
        RecordError: it is no number from 0 to 1.
    """
    if value is None:
        return 1.0
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = -1.0
    if not 0 <= score <= 1:
        raise RecordError(
            BROKEN, f"{where}: the score is {reprlib.repr(value)}; it must be from 0 to 1"
        )
    return score


def crop(mask: LabelledMask) -> tuple[np.ndarray, int, int]:
    """Cut a mask out of its image.

    Returns:
        (h, w) uint8 of the mask's box, and its left and top in the image.
    """
    x, y, width, height = (int(value) for value in mask_api.toBbox(mask.rle))
    return mask_api.decode(mask.rle)[y : y + height, x : x + width], x, y


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Compress a mask (h, w)."""
    return mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))


def from_polygons(polygons: Any, width: int, height: int, where: object) -> dict[str, Any]:
    """Draw polygons in pixel edges as COCO does.

    Raises:
        RecordError: they cannot be read.
    """
    good, _ = clean_polygons(polygons, height, width, where)
    if not good:
        raise RecordError(UNREADABLE, f"{where}: no polygon of its mask has three points")
    return draw(good, height, width)


def run_lengths(pixels: np.ndarray) -> np.ndarray:
    """Return the lengths of alternating runs of 0 and 1 in flat pixels; the first may be 0 long.

    Example:
        >>> run_lengths(np.array([1, 1, 0, 1])).tolist()
        [0, 2, 1, 1]
    """
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    runs = np.diff(changes, prepend=-1, append=len(pixels) - 1)
    return np.concatenate([[0], runs]) if pixels[0] else runs


def from_runs(runs: Sequence[int], height: int, width: int, where: object) -> np.ndarray:
    """Return the mask (height, width) uint8 of ``run_lengths`` row by row.

    Raises:
        RecordError: the runs do not fill the mask.
    """
    lengths = np.asarray(runs, np.int64)
    if (len(lengths) and lengths.min() < 0) or lengths.sum() != height * width:
        raise RecordError(
            UNREADABLE,
            f"{where}: its runs do not add up to the {width} x {height} pixels of its box",
        )
    pixels = np.repeat((np.arange(len(lengths)) % 2).astype(np.uint8), lengths)
    return pixels.reshape(height, width)


def pasted(part: np.ndarray, left: int, top: int, image: tuple[int, int], where: object) -> dict:
    """Put a mask's box back into its image and compress it.

    Args:
        part: (h, w) uint8.
        left: of the box, pixels.
        top: likewise.
        image: width and height.
        where: names the record.

    Raises:
        RecordError: the box is not inside the image.
    """
    width, height = image
    bottom, right = top + part.shape[0], left + part.shape[1]
    if min(left, top) < 0 or right > width or bottom > height:
        raise RecordError(
            UNREADABLE,
            f"{where}: its box, {left} to {right} and {top} to {bottom}, leaves the {width} x "
            f"{height} image",
        )
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = part
    return encode(mask)


def walk_files(folder: Path, suffixes: str | tuple[str, ...]) -> Iterator[Path]:
    """Yield the files under a folder whose names end so, sorted folder by folder.

    Raises:
        UserError: it is no folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(suffixes):
                yield Path(root, name)


def unreadable(path: object, error: Exception) -> NoReturn:
    """Raise what an error of a file's content becomes."""
    raise UserError(f"cannot read {path}: {error}") from error
