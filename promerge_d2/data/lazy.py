"""A COCO file of any size as detectron2's dicts, read image by image.

The file is checked when it is opened. An item of the list is parsed when somebody looks at it,
which detectron2's filters do for one at a time. In detectron2's own serialised list, and so in its
loader, an item is its places in the file, some 200 bytes; taken out, it is a plain dict again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from detectron2.structures import BoxMode

from promerge_d2.coco.index import CocoIndex, Spans, Stamp, read_image
from promerge_d2.coco.read import why_useless
from promerge_d2.coco.records import Instance, RecordError, locate


class LazyCoco(Sequence["LazyItem"]):
    """The images of a COCO file, sorted by id.

    Args:
        json_file: the COCO JSON; it must stay as it is while the list is in use.
        image_root: where the images are.
        classes: a detector's class by ``category_id``; None makes every object class 0.

    Raises:
        UserError: the file is missing or broken.
        RecordError: a record is refused; the message names it.
    """

    def __init__(
        self,
        json_file: str | os.PathLike,
        image_root: str | os.PathLike,
        classes: Mapping[Any, int] | None = None,
    ) -> None:
        self._index = CocoIndex(json_file)
        self._index.tally.log(self._index.path)
        self._image_root = str(image_root)
        self._classes = classes

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, index: int) -> LazyItem: ...
    @overload
    def __getitem__(self, index: slice) -> list[LazyItem]: ...
    def __getitem__(self, index: int | slice) -> LazyItem | list[LazyItem]:
        if isinstance(index, slice):
            return [LazyItem(self, place) for place in range(len(self))[index]]
        return LazyItem(self, range(len(self))[index])

    def source(self, place: int) -> tuple:
        """Return what ``read_item`` takes for the image at a place."""
        index = self._index
        spans = index.spans(place)
        return index.path, index.stamp, self._image_root, spans, index.box_only, self._classes


class LazyItem(Mapping):
    """A detectron2 dict that is read when it is looked at, and pickled or copied as a dict."""

    __slots__ = ("_list", "_place")

    def __init__(self, images: LazyCoco, place: int) -> None:
        self._list = images
        self._place = place

    def __getitem__(self, key: str) -> Any:
        return self._read()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __reduce__(self) -> tuple:
        return read_item, self._list.source(self._place)

    def _read(self) -> dict:
        return read_item(*self._list.source(self._place))


def read_item(
    json_file: str,
    stamp: Stamp,
    image_root: str,
    spans: Spans,
    box_only: bool,
    classes: Mapping[Any, int] | None = None,
) -> dict:
    """Read an image's dict.

    Args:
        json_file: the COCO JSON.
        stamp: of the file, when it was indexed.
        image_root: where the images are.
        spans: of the image, see ``CocoIndex``.
        box_only: whether no object of the file has a mask.
        classes: see ``LazyCoco``.

    Returns:
        detectron2's standard dict; annotations have ``score`` where the file has it. Crowds keep
        ``iscrowd`` 1, which training leaves out. Objects without a mask (in a file with masks) or
        without a pixel are left out.

    Raises:
        UserError: the file has changed.
        RecordError: an object's category is none of ``classes``.
    """
    image, objects = read_image(json_file, stamp, spans)
    return {
        "file_name": locate(image_root, image.name),
        "height": image.height,
        "width": image.width,
        "image_id": image.id,
        "annotations": [
            _annotation(item, classes) for item in objects if not why_useless(item, box_only)
        ],
    }


def _annotation(item: Instance, classes: Mapping[Any, int] | None) -> dict:
    """Return detectron2's form of an object."""
    category = item.where.record.get("category_id")
    own_class = 0 if classes is None else classes.get(category)
    if own_class is None:
        raise RecordError(
            "unknown categories", f"{item.where}: category_id {category!r} is none of the data set"
        )
    annotation = {
        "iscrowd": int(item.crowd),
        "bbox": list(item.box),
        "category_id": own_class,
        "bbox_mode": BoxMode.XYWH_ABS,
    }
    if item.where.record.get("score") is not None:
        annotation["score"] = item.score
    if item.has_mask:
        annotation["segmentation"] = item.segmentation()
    return annotation
