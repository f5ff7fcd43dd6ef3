"""Label files of other projects as ours: one class, RLE masks, sizes put right, scores kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promerge_d2.coco.fields import EMPTY, Tally
from promerge_d2.coco.read import CocoSource, iter_images, iter_objects, why_useless
from promerge_d2.coco.records import ImageId, ImageInfo, RecordError, rle_record, slashes
from promerge_d2.coco.table import ImageTable
from promerge_d2.coco.write import coco_writer
from promerge_d2.pseudo_labels.formats import FORMATS
from promerge_d2.pseudo_labels.formats.base import LABEL, Source
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import sha256_of

# what the annotations of an image say of its width and height: they are right or exchanged, by the
# size of an RLE, or by a polygon that fits the image in one way only
_RLE_RIGHT, _RLE_EXCHANGED, _POLYGON_RIGHT, _POLYGON_EXCHANGED, _USED = 1, 2, 4, 8, 16


@dataclass
class Imported:
    """What became of a label file.

    Attributes:
        images: images written.
        masks: masks written.
        swapped: images whose width and height were exchanged.
        mended: what was put right in masks that were written, by kind.
        left_out: annotations (and images) that could not be used, by reason.
    """

    images: int = 0
    masks: int = 0
    swapped: int = 0
    mended: Tally = field(default_factory=Tally)
    left_out: Tally = field(default_factory=Tally)


def import_labels(
    source: str | os.PathLike,
    output: str | os.PathLike,
    images_from: str | os.PathLike | None = None,
    leave_out_damaged: bool = False,
) -> Imported:
    """Write a label file of CutLER, ProMerge or CuVLER, or any COCO file, as one of ours.

    All categories become one. CutLER's files have width and height exchanged: the masks tell. Where
    every image that can tell says so, all are put right, else those that say so. ProMerge's file is
    a bare list of annotations with ids that are floats; its images come from another file. Polygons
    become RLE; boxes and areas are computed anew; scores stay (1.0 where there is none), as crowds.

    The file is gone through three times, never held; memory grows by some 150 bytes an image and 8
    an annotation.

    Args:
        source: the file.
        output: the COCO JSON to write.
        images_from: a COCO JSON with the images of a bare list, such as the ground truth.
        leave_out_damaged: leave records out that would be refused, and count them.

    Returns:
        What was done. Objects without a mask or without a pixel are left out and counted.

    Raises:
        UserError: the file has neither form, or a bare list comes without its images (or a COCO
            file with other ones).
        RecordError: a record is refused; the message names it.
    """
    file = CocoSource(source, "label file")
    if file.is_list and images_from is None:
        raise UserError(
            f"{source} is a bare list without images; name a COCO file that has them (the ground "
            "truth's) with --images-from"
        )
    if not file.is_list and images_from is not None:
        raise UserError(f"{source} has images of its own; leave out --images-from")
    section = "" if file.is_list else "annotations"
    listing = file if images_from is None else CocoSource(images_from, "images' file")
    found = Imported()

    def damaged(error: RecordError) -> None:
        if not leave_out_damaged:
            raise error
        found.left_out.note(error.kind, error)

    def images(seen: ImageTable, damaged: Callable[[RecordError], None]) -> Iterator[ImageInfo]:
        rows = listing.records("images")
        for image in iter_images(rows, listing.name, seen, need_name=True, damaged=damaged):
            seen.add(image)
            yield image

    table = ImageTable()
    for _ in images(table, damaged):
        pass
    said = _read_sizes(file.records(section), table)
    found.swapped = _put_right(table, said)
    numbered = not all(isinstance(image_id, int) for image_id in table)

    def number(image_id: ImageId) -> ImageId:
        return table.rows[image_id] + 1 if numbered else image_id

    info = {
        "description": f"imported from {os.path.basename(source)}",
        "source_sha256": sha256_of(source),
    }
    with coco_writer(output, info) as out:
        for image in images(ImageTable(), lambda error: None):  # those refused are counted already
            if file.is_list and not said[table.rows[image.id]] & _USED:
                continue
            height, width = table[image.id].size
            upright = ImageInfo(number(image.id), slashes(image.name), width, height, image.reason)
            out.add_image(upright.record())
        for item in iter_objects(
            file.records(section),
            table,
            file.name,
            section=section,
            tally=found.mended,
            damaged=damaged,
        ):
            if reason := why_useless(item, box_only=False):
                found.left_out.note(reason, item.where)
                continue
            crowd = {"image_id": number(item.image_id), "iscrowd": int(item.crowd)}
            out.add_annotation({**crowd, **item.mask_record()})
    found.images, found.masks = out.images, out.annotations
    return found


def import_format(
    source: str | os.PathLike,
    output: str | os.PathLike,
    format_name: str,
    image_root: str | os.PathLike | None = None,
    leave_out_damaged: bool = False,
) -> Imported:
    """Write labels that another tool keeps as one of our label files, image by image.

    All classes become one; what the file calls an object other than "object" stays in the record
    as ``label``. Scores stay, 1.0 where there is none.

    Args:
        source: the file or the folder, see the format's module in ``formats``.
        output: the COCO JSON to write.
        format_name: one of ``FORMATS``.
        image_root: folder of the photographs, for formats that do not hold their sizes.
        leave_out_damaged: leave records out that would be refused, and count them.

    Returns:
        What was done. Objects without a mask or without a pixel are left out and counted.

    Raises:
        UserError: it is not of that format, or a name leads out of the folder.
        RecordError: a record is refused; the message names it.
    """
    found = Imported()
    root = None if image_root is None else Path(image_root)
    told = Source(Path(source), root, found.left_out, leave_out_damaged)
    info = {"description": f"imported from {os.path.basename(source)} ({format_name})"}
    with coco_writer(output, info) as out:
        for image in FORMATS[format_name].read(told):
            number = out.images + 1
            size = {"width": image.width, "height": image.height}
            out.add_image({"id": number, "file_name": image.name, **size})
            for mask in image.masks:
                record = rle_record(mask.rle, mask.score)
                if not record["area"]:
                    found.left_out.note(EMPTY, image.name)
                    continue
                label = {} if mask.label == LABEL else {"label": mask.label}
                out.add_annotation({"image_id": number, **record, **label})
    found.images, found.masks = out.images, out.annotations
    return found


def _read_sizes(records: Iterable[Any], table: ImageTable) -> bytearray:
    """Collect what the annotations say of their images, as bits by row; broken ones say nothing."""
    said = bytearray(len(table))
    for record in records:
        if not isinstance(record, dict):
            continue
        image_id = record.get("image_id")
        if isinstance(image_id, float) and image_id.is_integer():
            image_id = int(image_id)
        row = table.rows.get(image_id) if isinstance(image_id, int | str) else None
        if row is None:
            continue
        height, width = table.heights[row], table.widths[row]
        said[row] |= _USED
        if height != width:
            said[row] |= _orientation(record.get("segmentation"), height, width)
    return said


def _orientation(mask: Any, height: int, width: int) -> int:
    """Return what a segmentation says of its image's size, see ``_RLE_RIGHT``; 0 for nothing."""
    if isinstance(mask, dict):
        size = mask.get("size")
        if size == [height, width]:
            return _RLE_RIGHT
        return _RLE_EXCHANGED if size == [width, height] else 0
    parts = mask if isinstance(mask, list) and all(isinstance(p, list) for p in mask) else [mask]
    try:
        right = max(max(part[0::2]) for part in parts if part)
        bottom = max(max(part[1::2]) for part in parts if part)
        fits = right <= width + 1 and bottom <= height + 1  # a pixel is rounding
        fits_exchanged = right <= height + 1 and bottom <= width + 1
    except (TypeError, ValueError):
        return 0
    if fits == fits_exchanged:
        return 0
    return _POLYGON_RIGHT if fits else _POLYGON_EXCHANGED


def _put_right(table: ImageTable, said: bytearray) -> int:
    """Exchange width and height where the masks say so; return of how many images."""
    exchanged, right = [], False
    for row, bits in enumerate(said):
        sure, likely = bits & 3, bits >> 2 & 3
        verdict = sure or likely
        right |= bool(verdict & _RLE_RIGHT)
        if verdict == _RLE_EXCHANGED:
            exchanged.append(row)
    rows = exchanged if right or not exchanged else range(len(said))
    for row in rows:
        table.exchange(row)
    return len(rows)
