"""A COCO file of any size as detectron2's dicts, read image by image.

An item of the list is parsed when somebody looks at it, which detectron2's filters do for one at a
time. In detectron2's own serialised list, and so in its loader, an item is its places in the file,
some 200 bytes; taken out, it is a plain dict again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.structures import BoxMode
from pycocotools import mask as mask_api

from promerge_d2.coco.file import CocoFile, Stamp, Where, read_image


class LazyCoco(Sequence):
    """The images of a COCO file, sorted by id, every object of class 0.

    Args:
        json_file: the COCO JSON; it must stay as it is while the list is in use.
        image_root: where the images are.

    Raises:
        UserError: see ``CocoFile``.
    """

    def __init__(self, json_file: str | os.PathLike, image_root: str | os.PathLike) -> None:
        self._file = CocoFile(json_file)
        self._image_root = str(image_root)

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, index: int | slice) -> LazyItem | list[LazyItem]:
        places = range(len(self))[index]
        if isinstance(index, slice):
            return [LazyItem(self, place) for place in places]
        return LazyItem(self, places)

    def source(self, place: int) -> tuple:
        """What ``read_item`` takes for the image at a place."""
        return self._file.path, self._file.stamp, self._image_root, self._file.where(place)


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


def read_item(json_file: str, stamp: Stamp, image_root: str, where: Where) -> dict:
    """Read an image's dict.

    Args:
        json_file: the COCO JSON.
        stamp: of the file, when its places were noted.
        image_root: where the images are.
        where: see ``CocoFile``.

    Returns:
        detectron2's standard dict; annotations have ``score`` where the file has it. Crowds keep
        ``iscrowd`` 1, which training leaves out; polygons of fewer than three points are left out.

    Raises:
        UserError: the file has changed.
    """
    image, annotations = read_image(json_file, stamp, where)
    return {
        "file_name": os.path.join(image_root, image["file_name"]),
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
        "annotations": [o for a in annotations if (o := _object(a)) is not None],
    }


def _object(annotation: dict) -> dict | None:
    """detectron2's form of an annotation; None where its mask is polygons without an area."""
    kept = ("iscrowd", "bbox", "score")
    thing = {key: annotation[key] for key in kept if key in annotation}
    thing |= {"category_id": 0, "bbox_mode": BoxMode.XYWH_ABS}
    mask = annotation.get("segmentation")
    if isinstance(mask, dict) and isinstance(mask["counts"], list):
        mask = mask_api.frPyObjects(mask, *mask["size"])
    elif isinstance(mask, list) and mask:
        mask = [polygon for polygon in mask if len(polygon) >= 6 and len(polygon) % 2 == 0]
        if not mask:
            return None
    if mask:
        thing["segmentation"] = mask
    return thing
