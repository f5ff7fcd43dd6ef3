"""Fields of records: what is accepted, what is refused (rules: the docstring of the package)."""

from __future__ import annotations

import collections
import logging
import math
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from promerge_d2.coco.records import MAX_SIDE, Box, ImageId, ImageInfo, RecordError, RecordRef

logger = logging.getLogger(__name__)

NAMED = 5  # examples of each kind, in messages

# kinds of RecordError, and reasons of a Tally; those of masks are in rle.py
UNREADABLE = "entries that cannot be read"
IMAGE_TWICE = "image ids that occur twice"
NO_SIZE = "images without a size"
NO_NAME = "images without a file name"
UNLISTED = "objects of images that are not listed"
TWICE = "annotation ids that occur twice"
BAD_BOX = "boxes that cannot be read"
BAD_SCORE = "scores that are no number"
NO_MASK = "objects without a mask"
EMPTY = "objects without a pixel"
STRAY = "polygon parts of fewer than three points"
NO_AREA = "boxes of no area beside a mask (the mask's box is taken)"

PLAIN = frozenset((int, float))  # types of numbers; bool is none of them
_FAR = 1e300  # an integer beyond may be too large for a float
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


@dataclass
class Tally:
    """Counts of what is wrong or left out, by kind, with the first few of each.

    Attributes:
        problems: how often each kind occurs.
        examples: the first ``NAMED`` of each kind, in words.
    """

    problems: collections.Counter[str] = field(default_factory=collections.Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, problem: str, example: object, count: int = 1) -> None:
        """Count a problem; ``example`` becomes text only if it is one of the first."""
        self.problems[problem] += count
        examples = self.examples.setdefault(problem, [])
        if len(examples) < NAMED:
            examples.append(str(example))

    def add(self, other: Tally) -> None:
        """Add the counts of another one."""
        self.problems.update(other.problems)
        for problem, examples in other.examples.items():
            self.examples[problem] = [*self.examples.get(problem, ()), *examples][:NAMED]

    def lines(self, what: str) -> Iterator[str]:
        """Yield what a tool prints of it: each kind with its count, and the first few below."""
        for problem, count in sorted(self.problems.items()):
            yield f"  {what}: {count} {problem}:"
            yield from (f"    {example}" for example in self.examples[problem])

    def log(self, what: str) -> None:
        """Warn of each kind, with its count and the first of it."""
        for problem, count in sorted(self.problems.items()):
            first = self.examples[problem][0]
            logger.warning("%s: %d %s, the first: %s", what, count, problem, first)


class UniqueIds:
    """The annotation ids of a file so far; those that count up take no memory."""

    def __init__(self) -> None:
        self._counted = range(0)
        self._others: set[ImageId] = set()

    def add(self, record: dict[str, Any], name: str, section: str, index: int) -> None:
        """Add a record's id, if it has one.

        Args:
            record: as it is in the file.
            name: what messages call the file.
            section: the list that it is in.
            index: its place there.

        Raises:
            RecordError: another record has the id, or it is no id.
        """
        value = record.get("id")
        if value is None:
            return
        if type(value) is not int:
            value = _id(value, "id", RecordRef(name, section, index, record))
        number = isinstance(value, int)
        if value in self._others or (number and value in self._counted):
            where = RecordRef(name, section, index, record)
            raise RecordError(TWICE, f"{where}: another annotation has the same id")
        if isinstance(value, int) and not self._counted:
            self._counted = range(value, value + 1)
        elif value == self._counted.stop:
            self._counted = range(self._counted.start, self._counted.stop + 1)
        else:
            self._others.add(value)


class Fields(NamedTuple):
    """A record whose fields are checked, its mask not yet.

    Attributes:
        where: names it.
        image_id: the id of its image.
        crowd: of ``iscrowd``.
        box: XYWH, None without one.
        area: None without one.
        score: None without one.
        mask: what ``segmentation`` holds, None where that is nothing.
    """

    where: RecordRef
    image_id: ImageId
    crowd: bool
    box: Box | None
    area: float | None
    score: float | None
    mask: Any


def read_fields(record: Any, name: str, section: str, index: int) -> Fields:
    """Check the fields of an annotation or a prediction.

    Args:
        record: as it is in the file.
        name: what messages call the file.
        section: the list that it is in.
        index: its place there.

    Raises:
        RecordError: it is refused.
    """
    where = _ref(record, name, section, index)
    image_id = _id(_key(record, "image_id", where), "image id", where)
    area, score = record.get("area"), record.get("score")
    if area is not None:
        area = _number(area, "area", where)
        if area < 0:
            raise RecordError(UNREADABLE, f"{where}: area is {area}; it cannot be negative")
    return Fields(
        where,
        image_id,
        _is_crowd(record.get("iscrowd"), where),
        _box(record.get("bbox"), where),
        area,
        None if score is None else _number(score, "score", where, BAD_SCORE),
        mask_of(record),
    )


def unlisted(where: object) -> RecordError:
    """Return the error of a record whose image the file does not list."""
    return RecordError(UNLISTED, f"{where}: its image is not in the 'images' of the file")


def unusable(where: object) -> RecordError:
    """Return the error of a record without a box and without a mask."""
    return RecordError(
        NO_MASK, f"{where}: it has neither a 'bbox' nor a 'segmentation' that can be used"
    )


def _ref(record: Any, name: str, section: str, index: int) -> RecordRef:
    """Name a record; refuse what is none."""
    if not isinstance(record, dict):
        where = RecordRef(name, section, index, {})
        raise RecordError(UNREADABLE, f"{where} is {reprlib.repr(record)}, not an object with keys")
    return RecordRef(name, section, index, record)


def _key(record: dict[str, Any], key: str, where: RecordRef) -> Any:
    if key not in record:
        raise RecordError(UNREADABLE, f"{where}: it has no {key!r}")
    return record[key]


def _id(value: Any, what: str, where: object) -> ImageId:
    """Return an id; integral floats, as the released ProMerge writes them, become integers."""
    if type(value) is int or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise RecordError(
        UNREADABLE,
        f"{where}: the {what} is {reprlib.repr(value)}; it must be an integer or a string",
    )


def read_image_fields(
    record: Any, name: str, index: int, need_size: bool, need_name: bool
) -> ImageInfo:
    """Check an entry of an ``images`` section.

    Args:
        record: as it is in the file.
        name: what messages call the file.
        index: its place in the section.
        need_size: whether it must have ``width`` and ``height``.
        need_name: whether it must have a ``file_name``.

    Raises:
        RecordError: it is refused.
    """
    where = _ref(record, name, "images", index)
    image_id = _id(_key(record, "id", where), "image id", where)
    width, height = (_side(record, key, need_size, where) for key in ("width", "height"))
    file_name = record.get("file_name")
    if file_name is None and isinstance(record.get("coco_url"), str):
        file_name = "/".join(record["coco_url"].split("/")[-2:])  # LVIS v1 has no file_name
    if file_name is not None and (not isinstance(file_name, str) or "\0" in file_name):
        raise RecordError(NO_NAME, f"{where}: {reprlib.repr(file_name)} cannot be a file name")
    if need_name and not file_name:
        raise RecordError(NO_NAME, f"{where}: it has no 'file_name'")
    reason = record.get("reason")
    reason = None if reason is None else str(reason)
    return ImageInfo(image_id, file_name or None, width, height, reason)


def _side(record: dict[str, Any], key: str, needed: bool, where: RecordRef) -> int | None:
    """Return a width or height; None where it is missing and not needed."""
    value = record.get(key)
    if value is None and not needed:
        return None
    if key not in record:
        raise RecordError(NO_SIZE, f"{where}: it has no {key!r}")
    side = _number_of(value)
    if side is None or not side.is_integer() or not 0 < side <= MAX_SIDE:
        raise RecordError(
            NO_SIZE,
            f"{where}: {key} is {reprlib.repr(value)}; it must be an integer from 1 to {MAX_SIDE}",
        )
    return int(side)


def _number_of(value: Any) -> float | None:
    """Return a finite number, which may be text; None if it is none."""
    if type(value) not in PLAIN and not (isinstance(value, str) and _NUMBER.fullmatch(value)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer too large for a float
        return None
    return number if math.isfinite(number) else None


def _number(value: Any, key: str, where: RecordRef, kind: str = UNREADABLE) -> float:
    """Return a finite number."""
    number = _number_of(value)
    if number is None:
        raise RecordError(
            kind, f"{where}: {key} is {reprlib.repr(value)}; it must be a finite number"
        )
    return number


def _box(box: Any, where: RecordRef) -> Box | None:
    """Return the box as XYWH; None where it is missing or empty."""
    if box is None or box == []:
        return None
    if type(box) is list and len(box) == 4 and PLAIN.issuperset(map(type, box)):
        x, y, width, height = box
        if -_FAR < x < _FAR and -_FAR < y < _FAR and 0 <= width < _FAR and 0 <= height < _FAR:
            return float(x), float(y), float(width), float(height)  # as nearly all boxes are
    if not isinstance(box, list | tuple) or len(box) != 4:
        raise RecordError(
            BAD_BOX, f"{where}: bbox is {reprlib.repr(box)}; it must be [x, y, width, height]"
        )
    x, y, width, height = (_number(value, "a value of bbox", where, BAD_BOX) for value in box)
    if width < 0 or height < 0:
        raise RecordError(
            BAD_BOX,
            f"{where}: bbox {reprlib.repr(box)} has a negative width or height; boxes are "
            "[x, y, width, height]",
        )
    return x, y, width, height


def mask_of(record: dict[str, Any]) -> Any:
    """Return what ``segmentation`` holds; None where that is nothing."""
    mask = record.get("segmentation")
    return None if mask in (None, [], {}) else mask


def _is_crowd(crowd: Any, where: RecordRef) -> bool:
    """Return ``iscrowd``: 0, 1, a boolean, the same as text, or missing."""
    if crowd is None or isinstance(crowd, bool):
        return bool(crowd)
    number = _number_of(crowd)
    if number not in (0, 1):
        raise RecordError(
            UNREADABLE, f"{where}: iscrowd is {reprlib.repr(crowd)}; it must be 0 or 1"
        )
    return bool(number)
