"""Files record by record: where they come from, what their records hold.

The rules are in the docstring of ``promerge_d2.coco``. Whatever the file's categories are, they are
read as one class.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_api

from promerge_d2.coco.fields import (
    EMPTY,
    IMAGE_TWICE,
    NO_AREA,
    NO_MASK,
    STRAY,
    Fields,
    Tally,
    UniqueIds,
    read_fields,
    read_image_fields,
    unlisted,
    unusable,
)
from promerge_d2.coco.json_stream import Element, JsonStream
from promerge_d2.coco.records import Box, ImageId, ImageInfo, Instance, RecordError, RecordRef
from promerge_d2.coco.rle import check_counts, clean_polygons, draw, to_rle
from promerge_d2.utils.errors import UserError

BLOCK = 100  # records checked at once; of more, Python's garbage collector looks at each


class CocoSource:
    """A file with ``images`` and ``annotations``, or a bare list of records; never held whole.

    Args:
        path: the file.
        what: its role, for messages.

    Attributes:
        name: the file, for messages.
        is_list: whether it is a bare list.
        info: the file's ``info`` if that comes first, else an empty dict.

    Raises:
        UserError: it is missing, or no JSON object or list.
    """

    def __init__(self, path: str | os.PathLike, what: str = "COCO file") -> None:
        self.name = os.fspath(path)
        self._what = what
        self._content: Any = None
        stream = JsonStream(path, what, spans=False)
        first = next(iter(stream), None)
        self.is_list = stream.sections == [""]
        self.info = _info(first.value if first is not None and first.section == "info" else None)

    @classmethod
    def of(cls, content: Any, name: str) -> CocoSource:
        """Wrap parsed JSON under a name."""
        source = object.__new__(cls)
        source.name = name
        source._content = content
        source.is_list = isinstance(content, list)
        source.info = _info(content.get("info") if isinstance(content, dict) else None)
        return source

    @property
    def description(self) -> str:
        """What the file says of itself; label files name their weights there."""
        text = self.info.get("description")
        return text if isinstance(text, str) else ""

    def has(self, section: str) -> bool:
        """Return whether there is a section of that name."""
        if self._content is not None:
            return isinstance(self._content, dict) and section in self._content
        stream = JsonStream(self.name, self._what, spans=False)
        return any(section in stream.sections for _ in stream) or section in stream.sections

    def records(self, section: str) -> Iterator[Any]:
        """Yield the records of a section; of a bare list with an empty name.

        Raises:
            UserError: there is no such list (of a file, when its end is reached).
        """
        if self._content is None:
            return (element.value for element in self.elements(section, spans=False))
        content = {"": self._content} if self.is_list else self._content
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise self._no_list(section)
        return iter(content[section])

    def elements(self, section: str, spans: bool = True) -> Iterator[Element]:
        """Yield the records of a file's section with their places, see ``records``."""
        stream = JsonStream(self.name, self._what, spans)
        for element in stream:
            if element.section == section:
                if section not in stream.lists:
                    break
                yield element
            elif section == "images" and section in stream.lists:
                return  # the rest is for those who read the annotations
        if section not in stream.lists:
            raise self._no_list(section)

    def _no_list(self, section: str) -> UserError:
        if self.is_list:
            return UserError(
                f"{self.name} is a bare list, as result files are; a COCO file needs 'images' and "
                "'annotations'"
            )
        return UserError(f"{self.name} is not a COCO file: it has no list {section!r}")


def _info(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def iter_images(
    rows: Iterable[Any],
    name: str,
    seen: Container[ImageId],
    *,
    need_size: bool = True,
    need_name: bool = False,
    damaged: Callable[[RecordError], None] | None = None,
) -> Iterator[ImageInfo]:
    """Check an ``images`` section, image by image.

    Args:
        rows: its records.
        name: what messages call the file.
        seen: the ids of the images so far; the caller adds each one before it takes the next.
        need_size: whether a record must have ``width`` and ``height``.
        need_name: whether a record must have a ``file_name``.
        damaged: takes the error of each record that is refused; None raises it.

    Raises:
        RecordError: a record is refused; the message names it.
    """
    for index, record in enumerate(rows):
        try:
            image = read_image_fields(record, name, index, need_size, need_name)
            if image.id in seen:
                where = RecordRef(name, "images", index, record)
                raise RecordError(
                    IMAGE_TWICE, f"{where}: the image id occurs twice; ids must be unique"
                )
        except RecordError as error:
            if damaged is None:
                raise
            damaged(error)
        else:
            yield image


def read_images(
    rows: Iterable[Any], name: str, need_size: bool = True, need_name: bool = False
) -> dict[ImageId, ImageInfo]:
    """Check an ``images`` section, see ``iter_images``.

    Returns:
        The images by id, in ascending order of ids (integers before texts).
    """
    images: dict[ImageId, ImageInfo] = {}
    for image in iter_images(rows, name, images, need_size=need_size, need_name=need_name):
        images[image.id] = image
    return {image_id: images[image_id] for image_id in sorted(images, key=id_order)}


def id_order(image_id: ImageId) -> tuple[bool, ImageId]:
    """Return the key that sorts ids: integers ascending, then texts."""
    return isinstance(image_id, str), image_id


def iter_objects(
    records: Iterable[Any],
    images: Mapping[ImageId, ImageInfo],
    name: str,
    *,
    section: str = "annotations",
    drawn: bool = True,
    trusted: bool = False,
    tally: Tally | None = None,
    damaged: Callable[[RecordError], None] | None = None,
) -> Iterator[Instance]:
    """Check annotations one by one; the rules are in the docstring of the package.

    Args:
        records: the ``annotations`` of a COCO file.
        images: its images.
        name: what messages call the file.
        section: the list that ``records`` are, see ``RecordRef``; the ids in a bare list need not
            be unique.
        drawn: whether polygons are drawn; without, such objects have no ``rle``, ``empty`` is
            False, and ``area`` is NaN where the file has none.
        trusted: whether compressed masks were checked before, so that this need not be done.
        tally: counts stray parts of polygons and boxes of no area.
        damaged: takes the error of each record that is refused; None raises it.

    Yields:
        The objects in the order of the file, without those that are refused.

    Raises:
        RecordError: a record is refused; the message names it.
    """
    tally = Tally() if tally is None else tally
    ids = UniqueIds()
    for start, batch in batches(records):
        drafts: list[Fields | RecordError] = []
        for index, record in enumerate(batch, start):
            try:
                draft = read_fields(record, name, section, index)
                if section:
                    ids.add(record, name, section, index)
                if draft.image_id not in images:
                    raise unlisted(draft.where)
                drafts.append(draft)
            except RecordError as error:
                drafts.append(error)
        good = [draft for draft in drafts if isinstance(draft, Fields)]
        sides = [images[draft.image_id] for draft in good]
        masks = iter(
            read_masks(
                [draft.mask for draft in good],
                [image.size for image in sides],
                [draft.where for draft in good],
                [drawn or _no_area(draft.box) for draft in good],
                trusted,
            )
        )
        for each in drafts:
            found = each if isinstance(each, RecordError) else _finish(each, next(masks), tally)
            if isinstance(found, Instance):
                yield found
            elif damaged is None:
                raise found
            else:
                damaged(found)


def why_useless(item: Instance, box_only: bool) -> str | None:
    """Return why an object is left out of training and of label files; None if it is not.

    Args:
        item: the object.
        box_only: whether no object of its file has a mask, so that boxes are what is wanted.
    """
    if not item.has_mask and not box_only:
        return NO_MASK
    return EMPTY if item.empty else None


def _finish(draft: Fields, mask: Mask | RecordError, tally: Tally) -> Instance | RecordError:
    """Put a record and its mask together; what it lacks follows from the mask or the box."""
    if isinstance(mask, RecordError):
        return mask
    where, box, area = draft.where, draft.box, draft.area
    if mask.stray:
        tally.note(STRAY, where, mask.stray)
    empty = mask.pixels == 0
    if not mask.there:
        if box is None:
            return unusable(where)
        empty = _no_area(box)
        area = box[2] * box[3] if area is None else area
    elif box is None or (_no_area(box) and mask.pixels):
        if box is not None:
            tally.note(NO_AREA, where)
        x, y, width, height = mask_api.toBbox(mask.rle).tolist()
        box = x, y, width, height
    if area is None:
        area = math.nan if mask.pixels is None else float(mask.pixels)
    return Instance(
        where,
        draft.image_id,
        box,
        mask.rle,
        area,
        draft.crowd,
        1.0 if draft.score is None else draft.score,
        mask.polygons,
        empty,
    )


def _no_area(box: Box | None) -> bool:
    return box is None or not box[2] * box[3]


def batches(rows: Iterable[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Yield ``BLOCK`` records at a time, with the place of the first."""
    rows, start = iter(rows), 0
    while batch := list(itertools.islice(rows, BLOCK)):
        yield start, batch
        start += len(batch)


class Mask(NamedTuple):
    """A segmentation that was read.

    Attributes:
        rle: compressed; None where there is none, or polygons were not drawn.
        polygons: those of three points or more; None where there is none, or an RLE.
        pixels: the area; None where there is none, or polygons were not drawn.
        stray: how many parts of the polygons were left out.
    """

    rle: dict[str, Any] | None = None
    polygons: list[list[float]] | None = None
    pixels: int | None = None
    stray: int = 0

    @property
    def there(self) -> bool:
        """Whether anything is left."""
        return self.rle is not None or self.polygons is not None


_NOTHING = Mask()


def read_masks(
    masks: Sequence[Any],
    sizes: Sequence[tuple[int, int]],
    wheres: Sequence[object],
    drawn: Sequence[bool],
    trusted: bool = False,
) -> list[Mask | RecordError]:
    """Check segmentations, compressed RLEs all at once.

    Args:
        masks: M segmentations, None where there is none.
        sizes: height and width of each one's image.
        wheres: names of the records, for messages.
        drawn: whether to draw it if it is polygons.
        trusted: see ``iter_objects``.
    """
    found: list[Mask | RecordError] = [_NOTHING] * len(masks)
    plain: list[int] = []
    rest: list[int] = []
    for place, mask in enumerate(masks):
        if mask is not None:
            is_plain = (
                type(mask) is dict
                and isinstance(mask.get("counts"), str | bytes)
                and mask.get("size") == [*sizes[place]]
            )
            (plain if is_plain else rest).append(place)
    texts = [
        counts if isinstance(counts, bytes) else counts.encode("utf-8", "surrogatepass")
        for counts in (masks[place]["counts"] for place in plain)
    ]
    pixels = np.array([sizes[place][0] * sizes[place][1] for place in plain], np.int64)
    if trusted:
        rles = [{"size": sizes[p], "counts": text} for p, text in zip(plain, texts, strict=True)]
        areas = np.array([mask_api.area(rle) for rle in rles], np.int64)
        good = np.ones(len(plain), bool)
    else:
        good, areas = check_counts(texts, pixels)
    for place, text, right, area in zip(plain, texts, good.tolist(), areas.tolist(), strict=True):
        if right:
            found[place] = Mask({"size": [*sizes[place]], "counts": text}, None, area)
        else:
            rest.append(place)
    for place in rest:
        try:
            found[place] = _read_mask(masks[place], *sizes[place], wheres[place], drawn[place])
        except RecordError as error:
            found[place] = error
    return found


def _read_mask(mask: Any, height: int, width: int, where: object, drawn: bool) -> Mask:
    if isinstance(mask, dict):
        rle = to_rle(mask, height, width, where)
        return Mask(rle, None, int(mask_api.area(rle)))
    polygons, stray = clean_polygons(mask, height, width, where)
    if not polygons or not drawn:
        return Mask(None, polygons or None, None, stray)
    rle = draw(polygons, height, width)
    return Mask(rle, polygons, int(mask_api.area(rle)), stray)
