"""Objects of a ground truth and predictions, one by one and in columns.

Boxes are ``[x, y, width, height]`` in pixels of the original image (XYWH, floats), masks compressed
RLE of the original image.
"""

from __future__ import annotations

import math
import reprlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

ImageId = int | str
Box = tuple[float, float, float, float]


class Where(NamedTuple):
    """Names a record in messages; the text is made when it is needed.

    Attributes:
        name: the file.
        section: the list that the record is in; empty for a bare list.
        index: its place in that list.
        ids: has its ``id`` and ``image_id``, where it has them; other keys are not looked at.
    """

    name: str
    section: str
    index: int
    ids: dict[str, Any]

    def __str__(self) -> str:
        place = f"{self.section}[{self.index}]" if self.section else f"record {self.index}"
        ids = [f"{k} {reprlib.repr(self.ids[k])}" for k in ("id", "image_id") if k in self.ids]
        return f"{self.name}: {place}" + (f" ({', '.join(ids)})" if ids else "")


@dataclass(frozen=True, slots=True)
class Instance:
    """One object of the ground truth, or one prediction.

    Attributes:
        where: names the record in messages.
        image_id: the id of its image in the ground truth.
        box: XYWH, pixels.
        rle: the mask as compressed RLE, None without one.
        area: pixels; for an object the file's own figure (it decides the size class), else of
            the mask, else of the box.
        crowd: objects only: a region whose predictions are not counted.
        score: predictions only; higher is surer.
    """

    where: Where
    image_id: ImageId
    box: Box
    rle: dict[str, Any] | None
    area: float
    crowd: bool = False
    score: float = 1.0


@dataclass(frozen=True, eq=False)
class InstanceTable(Sequence[Instance]):
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
                item.where.ids.get("id"),
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
            Where(
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

    def take(self, rows: np.ndarray) -> InstanceTable:
        """Some of the rows, by their numbers."""
        numbers = rows.tolist()
        return InstanceTable(
            self.name,
            self.section,
            self.image_ids,
            self.number[rows],
            [self.ids[row] for row in numbers],
            self.image[rows],
            self.box[rows],
            [self.masks[row] for row in numbers],
            self.size[rows],
            self.area[rows],
            self.crowd[rows],
            self.score[rows],
        )

    def on_image(self, image_id: ImageId) -> list[Instance]:
        """The instances of one image."""
        rows = np.flatnonzero(self.image == self.image_ids.index(image_id))
        return [self[row] for row in rows]

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
