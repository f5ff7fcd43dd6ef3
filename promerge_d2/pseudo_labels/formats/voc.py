"""Pascal VOC: an XML file an image, with boxes, and polygons as supervision and Roboflow have them.

    Annotations/NAME.xml                   the labels
    JPEGImages/NAME.jpg                    the photographs
    SegmentationObject/NAME.png            at each pixel the number of its object in the XML
    SegmentationClass/NAME.png             at each pixel its class, 1
    ImageSets/Segmentation/trainval.txt    the names

Boxes count pixels from 1, both ends included. A part of a mask is a ``<polygon>`` in pixel indices
from 1; holes are joined to it by seams. ``<score>`` is our own element, which others skip.

The PNGs hold one object a pixel: where masks overlap, that of the highest score. Masks are read
from polygons, and from ``SegmentationObject`` where an object has none, as in VOC's own files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from promerge_d2.coco.records import RecordError
from promerge_d2.coco.rle import OTHER_SIZE
from promerge_d2.pseudo_labels.formats.base import (
    BROKEN,
    LABEL,
    Add,
    Format,
    LabelledImage,
    LabelledMask,
    Order,
    Source,
    checked_name,
    crop,
    encode,
    new_file,
    score_of,
    side,
    walk_files,
    with_suffix,
)
from promerge_d2.pseudo_labels.formats.outlines import draw_indices, index_rings, three_points
from promerge_d2.pseudo_labels.formats.xml import parse_file, text_of
from promerge_d2.utils.errors import UserError

_FOLDER = "Annotations"
_OBJECTS, _CLASSES = "SegmentationObject", "SegmentationClass"
_NAMES = "ImageSets/Segmentation/trainval.txt"
_VOID = 255  # VOC's pixels of no class

# VOC's colours: bits 0, 3, 6 of a number are the highest of red, 1, 4, 7 of green, 2, 5 of blue
_PALETTE = [
    sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
    for number in range(256)
    for channel in range(3)
]


@contextlib.contextmanager
def write(order: Order) -> Iterator[Add]:
    """Write an XML file and two PNGs an image."""
    names = order.folder / _NAMES
    names.parent.mkdir(parents=True)

    def add(image: LabelledImage) -> str:
        _write_numbers(image, order)
        with open(names, "a", encoding="utf-8") as file:
            file.write(with_suffix(image.name, "") + "\n")
        folder, _, name = image.name.rpartition("/")
        with new_file(order.folder / _FOLDER / with_suffix(image.name, ".xml"), image) as file:
            file.write(
                f"<annotation>\n  <folder>{text_of(folder or 'JPEGImages')}</folder>\n"
                f"  <filename>{text_of(name)}</filename>\n  <size><width>{image.width}</width>"
                f"<height>{image.height}</height><depth>3</depth></size>\n"
                f"  <segmented>{int(bool(image.masks))}</segmented>\n"
            )
            for mask in image.masks:
                file.write(_object(mask, order))
            file.write("</annotation>\n")
        return f"JPEGImages/{image.name}"

    yield add


def _write_numbers(image: LabelledImage, order: Order) -> None:
    """Write ``SegmentationObject`` and ``SegmentationClass``.

    Raises:
        UserError: more objects than a byte can number, or the disk is full.
    """
    if len(image.masks) >= _VOID:
        raise UserError(
            f"{image.name} has {len(image.masks)} masks; VOC's pictures number {_VOID - 1} at "
            "most: choose another format, or keep the best in promerge studio"
        )
    numbers = np.zeros((image.height, image.width), np.uint8)
    for number, mask in sorted(enumerate(image.masks, 1), key=lambda item: item[1].score):
        numbers[mask_api.decode(mask.rle) > 0] = number
    for folder, pixels in ((_OBJECTS, numbers), (_CLASSES, (numbers > 0).astype(np.uint8))):
        path = order.folder / folder / with_suffix(image.name, ".png")
        picture = Image.fromarray(pixels)
        picture.putpalette(_PALETTE)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        except OSError as error:
            raise UserError(f"{image.name}: cannot write {path.name}: {error}") from error


def _object(mask: LabelledMask, order: Order) -> str:
    part, left, top = crop(mask)
    height, width = part.shape
    rings = index_rings(part)
    order.changes.note(int((draw_indices(rings, height, width) != part).sum()))
    polygons = []
    for ring in rings:
        corner = np.array([left + 1, top + 1])
        corners = enumerate((three_points(ring) + corner).tolist(), start=1)
        points = (f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in corners)
        polygons.append(f"    <polygon>{''.join(points)}</polygon>\n")
    return (
        f"  <object>\n    <name>{LABEL}</name>\n    <pose>Unspecified</pose>\n"
        "    <truncated>0</truncated>\n    <difficult>0</difficult>\n"
        f"    <bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{left + width}</xmax>"
        f"<ymax>{top + height}</ymax></bndbox>\n    <score>{mask.score!r}</score>\n"
        f"{''.join(polygons)}  </object>\n"
    )


def read(source: Source) -> Iterator[LabelledImage]:
    """Read the XML files under ``Annotations``, or under the folder that is named."""
    folder = source.path / _FOLDER
    folder = folder if folder.is_dir() else source.path
    for path in walk_files(folder, ".xml"):
        root = parse_file(path)
        if root.tag != "annotation":
            raise UserError(f"{path}: its root is <{root.tag}>, not <annotation>")
        where = str(path)
        try:
            width, height = (
                side(root.findtext(f"size/{key}"), key, where) for key in ("width", "height")
            )
        except RecordError as error:
            source.refuse(error)
            continue
        parent = path.parent.relative_to(folder).as_posix()
        name = checked_name(f"{parent}/{root.findtext('filename') or ''}", where)
        yield LabelledImage(name, width, height, _masks(root, (width, height), source, path))


def _masks(root: Element, size: tuple[int, int], source: Source, path: Path) -> list[LabelledMask]:
    masks: list[LabelledMask] = []
    numbers = None
    for number, item in enumerate(root.findall("object"), start=1):
        where = f"{path}: <object> {number}"
        polygons = item.findall("polygon")
        try:
            if polygons:
                rings = [_ring(polygon, size, where) for polygon in polygons]
                mask = draw_indices(rings, size[1], size[0])
            else:
                numbers = _read_numbers(path, size) if numbers is None else numbers
                mask = (numbers == number).astype(np.uint8)
            score = score_of(item.findtext("score"), where)
        except RecordError as error:
            source.refuse(error)
            continue
        if not mask.any():
            source.without_mask(where)
            continue
        masks.append(LabelledMask(encode(mask), score, item.findtext("name") or LABEL))
    return masks


def _read_numbers(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read the ``SegmentationObject`` of an XML file; zeros where there is none.

    Raises:
        RecordError: it cannot be read, or has another size.
    """
    folder = next((each for each in path.parents if each.name == _FOLDER), None)
    if folder is None:
        return np.zeros(size[::-1], np.uint8)
    picture = folder.parent / _OBJECTS / path.relative_to(folder).with_suffix(".png")
    if not picture.is_file():
        return np.zeros(size[::-1], np.uint8)
    try:
        with Image.open(picture) as opened:
            numbers = np.array(opened)
    except OSError as error:
        raise RecordError(BROKEN, f"{picture}: it cannot be read: {error}") from error
    if numbers.shape != size[::-1]:
        raise RecordError(
            OTHER_SIZE,
            f"{picture} is of {numbers.shape} pixels, {path.name} says {size[::-1]}",
        )
    return numbers


def _ring(polygon: Element, size: tuple[int, int], where: str) -> np.ndarray:
    """Read the points of a polygon, in pixel indices from 0."""
    try:
        values = [float(point.text or "") for point in polygon]
    except ValueError as error:
        raise RecordError(BROKEN, f"{where}: its polygon cannot be read: {error}") from error
    tags = [point.tag for point in polygon]
    right = [f"{axis}{n // 2 + 1}" for n, axis in enumerate("xy" * (len(tags) // 2))]
    points = np.array(values)
    if tags != right or len(points) < 6 or not (np.abs(points) <= 2 * max(size)).all():
        raise RecordError(
            BROKEN, f"{where}: its polygon is not x1, y1, x2, ... of three points in the image"
        )
    return np.rint(points.reshape(-1, 2) - 1).astype(np.int32)


FORMAT = Format("voc", "Pascal VOC, with polygons", write, read)
