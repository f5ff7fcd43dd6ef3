"""Label files of other projects as ours: one class, RLE masks, sizes put right, scores kept."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pycocotools import mask as mask_api

from promerge_d2.coco.json_stream import JsonStream
from promerge_d2.coco.records import rle_record
from promerge_d2.coco.rle import to_rle
from promerge_d2.pseudo_labels.merge import CATEGORIES, write_list
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path, sha256_of

NAMED = 5  # of annotations left out, in messages


@dataclass
class Imported:
    """What became of a label file.

    Attributes:
        images: images written.
        masks: masks written.
        swapped: images whose width and height were exchanged.
        left_out: how many annotations could not be used.
        examples: the first of them, in words.
    """

    images: int = 0
    masks: int = 0
    swapped: int = 0
    left_out: int = 0
    examples: list[str] = field(default_factory=list)


def import_labels(
    source: str | os.PathLike,
    output: str | os.PathLike,
    images_from: str | os.PathLike | None = None,
) -> Imported:
    """Write a label file of CutLER, ProMerge or CuVLER, or any COCO file, as one of ours.

    All categories become one. CutLER's files have width and height of their images exchanged; the
    masks tell, and where every mask that can tell says so, all images are put right. ProMerge's
    released file is a bare list of annotations with ids that are floats; its images come from
    another file. Polygons become RLE; boxes and areas are computed anew from the masks; scores
    stay (1.0 where there is none), crowds stay crowds.

    Of a bare list's images, those that it mentions are written. The file is gone through four
    times, never held; memory grows by some 150 bytes an image.

    Args:
        source: the file.
        output: the COCO JSON to write.
        images_from: a COCO JSON with the images of a bare list, such as the ground truth.

    Returns:
        What was done; an annotation whose mask cannot be used is left out and named.

    Raises:
        UserError: the file has neither form, a bare list comes without its images (or a COCO file
            with other ones), images have no size, or some sizes are exchanged and some are not.
    """
    table = _Images(source if images_from is None else images_from)
    sections = table.read_sizes(source)
    if sections == [""]:
        if images_from is None:
            raise UserError(
                f"{source} is a bare list without images; name a COCO file that has them (the "
                "ground truth's) with --images-from"
            )
    elif missing := {"images", "annotations"} - set(sections):
        raise UserError(f"{source} is no COCO file: it has no list {min(missing)!r}")
    elif images_from is not None:
        raise UserError(f"{source} has images of its own; leave out --images-from")
    found = Imported(swapped=len(table.widths) if table.swapped else 0)
    info = {
        "description": f"imported from {os.path.basename(source)}",
        "source_sha256": sha256_of(source),
    }
    with atomic_path(output) as part, open(part, "w", encoding="ascii") as file:
        file.write(f'{{"info": {json.dumps(info)}, "images": [')
        write_list(file, _images(table, images_from is not None, found))
        file.write('], "annotations": [')
        write_list(file, _annotations(source, table, found))
        file.write(f'], "categories": {json.dumps(CATEGORIES)}}}\n')
    return found


class _Images:
    """What has to be known of the images before anything is written.

    Attributes:
        path: the COCO file that lists them.
        rows: id to row.
        widths, heights: a number a row, as they are in the file.
        used: whether a row has annotations.
        swapped: whether width and height are exchanged.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = path
        self.rows: dict[Any, int] = {}
        self.widths, self.heights = array("i"), array("i")
        self.used = bytearray()
        self.swapped = False
        for image in _section(path, "images"):
            key = _key(image.get("id"))
            if key in self.rows:
                raise UserError(f"{path} lists the image id {key!r} twice")
            width, height = image.get("width"), image.get("height")
            if not isinstance(width, int) or not isinstance(height, int) or min(width, height) < 1:
                raise UserError(f"{path}: the image {key!r} has no size: {width} x {height}")
            self.rows[key] = len(self.rows)
            self.widths.append(width)
            self.heights.append(height)
            self.used.append(0)
        self.numbered = not all(isinstance(key, int) for key in self.rows)

    def number(self, key: Any) -> int:
        """The image's id in what is written: its own if all are integers."""
        return self.rows[key] + 1 if self.numbered else key

    def size(self, key: Any) -> tuple[int, int]:
        """Height and width of an image, put right."""
        row = self.rows[key]
        size = self.heights[row], self.widths[row]
        return size[::-1] if self.swapped else size

    def read_sizes(self, path: str | os.PathLike) -> list[str]:
        """See which images have annotations, and how the masks lie; the file's sections."""
        stream = JsonStream(path, "label file", spans=False)
        upright = turned = 0
        for element in stream:
            if element.section not in ("annotations", "") or not isinstance(element.value, dict):
                continue
            row = self.rows.get(_key(element.value.get("image_id")))
            if row is None:
                continue
            self.used[row] = 1
            mask = element.value.get("segmentation")
            size = mask.get("size") if isinstance(mask, dict) else None
            listed = [self.heights[row], self.widths[row]]
            if listed[0] != listed[1]:
                upright += size == listed
                turned += size == listed[::-1]
        if upright and turned:
            raise UserError(
                f"{path}: {upright} masks have the size of their image, {turned} have width and "
                "height exchanged; it is a mixture that cannot be put right"
            )
        self.swapped = turned > 0
        return stream.sections


def _images(table: _Images, used_only: bool, found: Imported) -> Iterator[dict]:
    for image in _section(table.path, "images"):
        key = _key(image["id"])
        if used_only and not table.used[table.rows[key]]:
            continue
        found.images += 1
        height, width = table.size(key)
        kept = {"id": table.number(key), "file_name": image.get("file_name")}
        kept |= {"width": width, "height": height}
        if "reason" in image:
            kept["reason"] = image["reason"]
        yield kept


def _annotations(source: str | os.PathLike, table: _Images, found: Imported) -> Iterator[dict]:
    for place, element in enumerate(
        e for e in JsonStream(source, "label file", spans=False) if e.section in ("annotations", "")
    ):
        annotation = element.value if isinstance(element.value, dict) else {}
        key = _key(annotation.get("image_id"))
        where = f"annotations[{place}] (image {key})"
        try:
            if key not in table.rows:
                raise UserError(f"{where}: its image is not listed")
            if not annotation.get("segmentation"):
                raise UserError(f"{where}: it has no mask")
            rle = to_rle(annotation["segmentation"], *table.size(key), where)
            if not mask_api.area(rle):
                raise UserError(f"{where}: its mask is empty")
        except UserError as error:
            found.left_out += 1
            if len(found.examples) < NAMED:
                found.examples.append(str(error))
            continue
        found.masks += 1
        yield {
            "id": found.masks,
            "image_id": table.number(key),
            "category_id": CATEGORIES[0]["id"],
            "iscrowd": int(bool(annotation.get("iscrowd"))),
            **rle_record(rle, float(annotation.get("score", 1.0))),
        }


def _section(path: str | os.PathLike, section: str) -> Iterator[dict]:
    for element in JsonStream(path, "label file", spans=False):
        if element.section == section:
            if not isinstance(element.value, dict):
                raise UserError(f"{path}: {section} holds {str(element.value)[:100]}")
            yield element.value


def _key(value: Any) -> int | str | None:
    """An image id; ProMerge writes integers as floats."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) else None
