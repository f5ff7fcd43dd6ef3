"""A COCO file of any size, read image by image.

Memory holds where the JSON of each image and each annotation is in the file, 32 bytes an image and
16 a mask (while the file is gone through, half as much again).
"""

from __future__ import annotations

import functools
import json
import mmap
import os
from array import array
from pathlib import Path

import numpy as np

from promerge_d2.coco.json_stream import Element, JsonStream
from promerge_d2.utils.errors import UserError

Stamp = tuple[int, int]  # size and time of a file
Where = tuple[int, ...]  # first byte of an image and the one after its last, then its annotations'


class CocoFile:
    """Where the images of a COCO file are, sorted by id, and their annotations.

    Args:
        path: the COCO JSON; it must stay as it is while it is in use.

    Attributes:
        stamp: its size and time.

    Raises:
        UserError: the file is missing or broken, an id is no integer or occurs twice, an image
            has no name or size, or an annotation's image is not in the file.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = os.fspath(path)
        images, annotations = _Spans(), _Spans()
        stream = JsonStream(path, "COCO file")
        for element in stream:
            if element.section == "images":
                images.add(element, _integer(element, "id", self.path))
                if lacking := {"file_name", "width", "height"} - element.value.keys():
                    raise UserError(
                        f"{path} lists an image without {', '.join(sorted(lacking))}: "
                        f"{str(element.value)[:200]}"
                    )
            elif element.section == "annotations":
                annotations.add(element, _integer(element, "image_id", self.path))
        if missing := {"images", "annotations"} - set(stream.sections):
            raise UserError(f"{path} is no COCO file: it has no list {min(missing)!r}")
        self.stamp = stamp_of(self.path)

        ids, self._images = images.sorted()
        if (again := np.flatnonzero(ids[1:] == ids[:-1])).size:
            raise UserError(f"{path} lists the image id {ids[again[0]]} twice")
        image_ids, self._annotations = annotations.sorted()
        if (strangers := np.setdiff1d(image_ids, ids)).size:
            raise UserError(
                f"{path} has annotations of the image {strangers[0]}, which it does not list"
            )
        self._first = np.searchsorted(image_ids, ids)
        self._last = np.searchsorted(image_ids, ids, side="right")

    def __len__(self) -> int:
        return len(self._images)

    def where(self, place: int) -> Where:
        """Where the image at a place is, for ``read_image``."""
        spans = self._annotations[self._first[place] : self._last[place]]
        return (*self._images[place].tolist(), *spans.ravel().tolist())

    def read(self, place: int) -> tuple[dict, list[dict]]:
        """The image at a place and its annotations, as they are in the file."""
        return read_image(self.path, self.stamp, self.where(place))


def read_image(path: str, stamp: Stamp, where: Where) -> tuple[dict, list[dict]]:
    """Read an image and its annotations, as they are in the file.

    Raises:
        UserError: the file is gone or has changed.
    """
    content = _opened(path, stamp)
    image, *annotations = (
        json.loads(content[start:end]) for start, end in zip(where[::2], where[1::2], strict=True)
    )
    return image, annotations


def stamp_of(path: str) -> Stamp:
    """What tells one content of a file from another."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


class _Spans:
    """Spans in a file, each of an image."""

    def __init__(self) -> None:
        self._ids = array("q")
        self._spans = array("q")

    def add(self, element: Element, image_id: int) -> None:
        self._ids.append(image_id)
        self._spans.extend((element.start, element.end))

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids (N,) ascending, spans (N, 2); those of an image in the order of the file."""
        ids = np.array(self._ids, np.int64)
        spans = np.array(self._spans, np.int64).reshape(-1, 2)
        order = np.argsort(ids, kind="stable")
        return ids[order], spans[order]


def _integer(element: Element, key: str, path: str) -> int:
    value = element.value.get(key) if isinstance(element.value, dict) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(
            f"{path}: an entry of {element.section!r} has no integer {key!r}: "
            f"{str(element.value)[:200]}"
        )
    return value


@functools.lru_cache(maxsize=8)
def _opened(path: str, stamp: Stamp) -> mmap.mmap:
    """The file's bytes; the system keeps of them in memory what it likes."""
    try:
        if stamp_of(path) == stamp:
            with Path(path).open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    raise UserError(f"{path} was changed while it was in use; start again")
