"""Objects of a ground truth, or predictions, in columns: a million fit into memory.

Boxes are ``[x, y, width, height]`` in pixels of the original image (XYWH, floats), masks compressed
RLE of the original image.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from promerge_d2.coco.records import ImageId, ImageInfo, Instance, RecordRef


@dataclass(frozen=True, eq=False)
class InstanceTable:
    """Instances in columns, so that a million fit: about 100 bytes each, and the RLE.

    Attributes:
        name: the file, for messages.
        section: the list in it that they come from.
        image_ids: what ``image`` counts.
        number: (N,) int64, places in ``section``.
        ids: N ids of the records, None where there was none.
        image: (N,) int32, places in ``image_ids``.
        box: (N, 4) float64, XYWH.
        masks: N RLE counts (bytes), None where there is no mask. In a file whose images are not
            known yet also whatever else ``segmentation`` holds.
        size: (N, 2) int32, height and width of the mask; 0 without one.
        area: (N,) float64.
        crowd: (N,) bool.
        score: (N,) float64.
    """

    name: str
    section: str
    image_ids: list[ImageId]
    number: np.ndarray
    ids: list[Any]
    image: np.ndarray
    box: np.ndarray
    masks: list[Any]
    size: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    score: np.ndarray

    @classmethod
    def of(
        cls, name: str, section: str, image_ids: Iterable[ImageId], instances: Iterable[Instance]
    ) -> InstanceTable:
        """Take instances up one by one; ``image_ids`` must have those of all of them."""
        columns = Columns()
        image_ids = list(image_ids)
        places = {image_id: i for i, image_id in enumerate(image_ids)}
        for item in instances:
            rle = item.rle or {"size": (0, 0), "counts": None}
            columns.add(
                item.where.index,
                item.where.record.get("id"),
                places[item.image_id],
                item.box,
                rle["counts"],
                rle["size"],
                item.area,
                item.crowd,
                item.score,
            )
        return columns.table(name, section, image_ids)

    def __len__(self) -> int:
        return len(self.number)

    def __getitem__(self, row: int) -> Instance:
        mask, ident = self.masks[row], self.ids[row]
        return Instance(
            RecordRef(
                self.name,
                self.section,
                int(self.number[row]),
                {} if ident is None else {"id": ident},
            ),
            self.image_ids[self.image[row]],
            tuple(self.box[row].tolist()),
            None if mask is None else {"size": self.size[row].tolist(), "counts": mask},
            float(self.area[row]),
            bool(self.crowd[row]),
            float(self.score[row]),
        )

    def __iter__(self) -> Iterator[Instance]:
        return (self[row] for row in range(len(self)))

    def take(self, rows: np.ndarray) -> InstanceTable:
        """Some of the rows, by their numbers."""
        arrays = ("number", "image", "box", "size", "area", "crowd", "score")
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in arrays}
        for name in ("ids", "masks"):
            values = getattr(self, name)
            columns[name] = [values[row] for row in rows.tolist()]
        return dataclasses.replace(self, **columns)

    def on_images(self, image_ids: set[ImageId]) -> InstanceTable:
        """The instances of some images."""
        kept = np.array([image_id in image_ids for image_id in self.image_ids], bool)
        return self.take(np.flatnonzero(kept[self.image]))

    def on_image(self, image_id: ImageId) -> list[Instance]:
        """The instances of one image."""
        rows = np.flatnonzero(self.image == self.image_ids.index(image_id))
        return [self[row] for row in rows.tolist()]

    @property
    def without_mask(self) -> list[int]:
        """The rows that have no mask."""
        return [row for row, mask in enumerate(self.masks) if mask is None]


class Columns:
    """A table in the making."""

    def __init__(self) -> None:
        self._ids: list[Any] = []
        self._masks: list[Any] = []
        self._number, self._image, self._size = array("q"), array("i"), array("i")
        self._box, self._area, self._score = array("d"), array("d"), array("d")
        self._crowd = bytearray()

    def add(
        self,
        number: int,
        ident: Any,
        image: int,
        box: Iterable[float],
        mask: Any,
        size: Iterable[int],
        area: float,
        crowd: bool,
        score: float,
    ) -> None:
        """Add a row; see ``InstanceTable`` for what the values mean."""
        self._number.append(number)
        self._ids.append(ident)
        self._image.append(image)
        self._box.extend(box)
        self._masks.append(mask)
        self._size.extend(size)
        self._area.append(area)
        self._crowd.append(crowd)
        self._score.append(score)

    def extend(
        self,
        number: int,
        ids: list[Any],
        image: list[int],
        box: np.ndarray,
        masks: list[tuple[Any, tuple[int, int]]],
        score: np.ndarray,
    ) -> None:
        """Add predictions that stand one after another, their areas not known yet.

        Args:
            number: of the first.
            ids: of all.
            image: places.
            box: (N, 4) float64.
            masks: what ``add`` takes as ``mask`` and ``size``.
            score: (N,) float64.
        """
        count = len(ids)
        self._number.extend(range(number, number + count))
        self._ids += ids
        self._image.extend(image)
        self._box.frombytes(box.tobytes())
        self._masks += [mask for mask, _ in masks]
        self._size.extend(side for _, size in masks for side in size)
        self._area.extend([math.nan] * count)
        self._crowd.extend(bytes(count))
        self._score.frombytes(score.tobytes())

    def table(self, name: str, section: str, image_ids: list[ImageId]) -> InstanceTable:
        """What was added."""
        return InstanceTable(
            name,
            section,
            image_ids,
            np.array(self._number, np.int64),
            self._ids,
            np.array(self._image, np.int32),
            np.array(self._box, np.float64).reshape(-1, 4),
            self._masks,
            np.array(self._size, np.int32).reshape(-1, 2),
            np.array(self._area, np.float64),
            np.frombuffer(self._crowd, bool),
            np.array(self._score, np.float64),
        )


class ImageTable(Mapping[ImageId, ImageInfo]):
    """Images by id, without their names: some 130 bytes each; the size may be lacking.

    Attributes:
        rows: id to row, in the order of the file.
        widths: pixels by row; 0 where the file does not say.
        heights: likewise.
    """

    def __init__(self) -> None:
        self.rows: dict[ImageId, int] = {}
        self.widths, self.heights = array("i"), array("i")

    def add(self, image: ImageInfo) -> None:
        """Add an image whose id is new."""
        self.rows[image.id] = len(self.rows)
        self.widths.append(image.width or 0)
        self.heights.append(image.height or 0)

    def exchange(self, row: int) -> None:
        """Exchange width and height of an image."""
        self.widths[row], self.heights[row] = self.heights[row], self.widths[row]

    def __getitem__(self, image_id: ImageId) -> ImageInfo:
        row = self.rows[image_id]
        return ImageInfo(image_id, None, self.widths[row] or None, self.heights[row] or None)

    def __iter__(self) -> Iterator[ImageId]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)
