"""The one way to write a COCO file: record by record, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from promerge_d2.utils.files import atomic_path

CATEGORIES = [{"id": 1, "name": "object"}]


class CocoWriter:
    """Takes images and annotations in any order, see ``coco_writer``.

    Attributes:
        images: how many there are so far.
        annotations: likewise.
    """

    def __init__(self, file: TextIO, spool: TextIO) -> None:
        self._file = file
        self._spool = spool
        self.images = self.annotations = 0

    def add_image(self, record: dict[str, Any]) -> None:
        """Write an entry of ``images``; NaN and infinities are a ``ValueError``, as below."""
        self._write(self._file, record, self.images)
        self.images += 1

    def add_annotation(self, record: dict[str, Any]) -> None:
        """Write an entry of ``annotations``.

        Args:
            record: ``image_id`` and what else it has; without ``id`` it gets its number, without
                ``category_id`` the one class, without ``iscrowd`` 0.
        """
        defaults = {"id": self.annotations + 1, "category_id": CATEGORIES[0]["id"], "iscrowd": 0}
        self._write(self._spool, {**defaults, **record}, self.annotations)
        self.annotations += 1

    @staticmethod
    def _write(file: TextIO, record: dict[str, Any], number: int) -> None:
        text = json.dumps(record, separators=(",", ":"), allow_nan=False)
        file.write(f",\n{text}" if number else text)


@contextlib.contextmanager
def coco_writer(
    path: str | os.PathLike, info: dict[str, Any], categories: list[dict[str, Any]] = CATEGORIES
) -> Iterator[CocoWriter]:
    """Write a COCO file; it is there when the block ends well, and untouched otherwise.

    Memory holds one record at a time; annotations wait in a file without a name in the same folder.
    The file is ASCII with a record a line: first ``info``, ``images``, ``annotations``, then
    ``categories``.

    Args:
        path: the file.
        info: what made it.
        categories: the classes.

    Yields:
        What takes the records.

    Raises:
        UserError: the folder cannot be made or written.
        OSError: the disk is full.
    """
    with (
        atomic_path(path) as part,
        open(part, "w", encoding="ascii") as file,
        tempfile.TemporaryFile("w+", encoding="ascii", dir=Path(part).parent) as spool,
    ):
        file.write(f'{{"info": {json.dumps(info, allow_nan=False)},\n"images": [\n')
        yield CocoWriter(file, spool)
        file.write('\n],\n"annotations": [\n')
        spool.seek(0)
        shutil.copyfileobj(spool, file, 1 << 20)
        file.write(f'\n],\n"categories": {json.dumps(categories)}}}\n')
        file.flush()
        os.fsync(file.fileno())
