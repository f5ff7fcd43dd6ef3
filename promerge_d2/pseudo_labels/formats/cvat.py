"""CVAT for images 1.1: one XML file; masks as run lengths, row by row, in their boxes.

    annotations.xml   the labels
    images/NAME       the photographs

Scores are an attribute ``score``. Polygons of others are in pixel edges and drawn as COCO's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from promerge_d2.coco.records import RecordError
from promerge_d2.pseudo_labels.formats.base import (
    BROKEN,
    LABEL,
    UNKNOWN_KIND,
    Add,
    Format,
    LabelledImage,
    LabelledMask,
    Order,
    Source,
    checked_name,
    crop,
    from_polygons,
    from_runs,
    pasted,
    run_lengths,
    score_of,
    side,
)
from promerge_d2.pseudo_labels.formats.xml import attribute, parse_stream
from promerge_d2.utils.errors import UserError

_BOX = "left", "top", "width", "height"


@contextlib.contextmanager
def write(order: Order) -> Iterator[Add]:
    """Write ``annotations.xml``, an image at a time."""
    count = 0
    with open(order.folder / "annotations.xml", "w", encoding="utf-8") as file:
        file.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
            f"  <meta><task><size>{order.images}</size><mode>annotation</mode><labels><label>"
            f"<name>{LABEL}</name><type>mask</type><attributes><attribute><name>score</name>"
            "<mutable>False</mutable><input_type>text</input_type><default_value></default_value>"
            "<values></values></attribute></attributes></label></labels></task></meta>\n"
        )

        def add(image: LabelledImage) -> str:
            nonlocal count
            file.write(
                f'  <image id="{count}" name={attribute(image.name)} width="{image.width}" '
                f'height="{image.height}">\n'
            )
            for mask in image.masks:
                part, left, top = crop(mask)
                runs = ", ".join(map(str, run_lengths(part.ravel()).tolist()))
                file.write(
                    f'    <mask label="{LABEL}" source="auto" occluded="0" rle="{runs}" '
                    f'left="{left}" top="{top}" width="{part.shape[1]}" '
                    f'height="{part.shape[0]}" z_order="0">'
                    f'<attribute name="score">{mask.score!r}</attribute></mask>\n'
                )
            file.write("  </image>\n")
            count += 1
            return f"images/{image.name}"

        yield add
        file.write("</annotations>\n")


def read(source: Source) -> Iterator[LabelledImage]:
    """Read ``annotations.xml``; it is named, or in the folder that is named."""
    path = source.path / "annotations.xml" if source.path.is_dir() else source.path
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    with file:
        depth, root, images = 0, None, 0
        for event, element in parse_stream(file, path):
            depth += 1 if event == "start" else -1
            if event == "start":
                if depth == 1:
                    root = element
                    if element.tag != "annotations":
                        raise UserError(f"{path}: its root is <{element.tag}>, not <annotations>")
                continue
            if depth != 1 or root is None:
                continue
            if element.tag == "image":
                images += 1
                if (image := _image(element, source, path)) is not None:
                    yield image
            elif element.tag == "track":
                track = f"{path}: <track> {element.get('id')}"
                why = "tracks are of videos; export the task as 'CVAT for images 1.1'"
                source.refuse(RecordError(UNKNOWN_KIND, f"{track}: {why}"))
            root.clear()


def _image(element: Element, source: Source, path: Path) -> LabelledImage | None:
    where = f"{path}: <image> {element.get('name')!r}"
    try:
        size = [side(element.get(key), key, where) for key in ("width", "height")]
    except RecordError as error:
        source.refuse(error)
        return None
    name = checked_name(element.get("name"), where)
    masks = []
    for number, shape in enumerate(element):
        place = f"{where}, <{shape.tag}> {number + 1}"
        if shape.tag == "box":
            source.without_mask(place)
        elif shape.tag in ("mask", "polygon"):
            try:
                masks.append(_mask(shape, (size[0], size[1]), place))
            except RecordError as error:
                source.refuse(error)
        else:
            why = "only <mask>, <polygon> and <box> can be read"
            source.refuse(RecordError(UNKNOWN_KIND, f"{place}: {why}"))
    return LabelledImage(name, size[0], size[1], masks)


def _mask(shape: Element, size: tuple[int, int], where: str) -> LabelledMask:
    try:
        if shape.tag == "polygon":
            pairs = shape.attrib["points"].split(";")
            points = [float(value) for pair in pairs for value in pair.split(",")]
            rle = from_polygons([points], *size, where)
        else:
            left, top, width, height = (int(float(shape.attrib[key])) for key in _BOX)
            runs = [int(run) for run in shape.attrib["rle"].split(",")]
            rle = pasted(from_runs(runs, height, width, where), left, top, size, where)
    except (KeyError, ValueError) as error:
        raise RecordError(BROKEN, f"{where}: it cannot be read: {error!r}") from error
    scores = [item.text for item in shape.iter("attribute") if item.get("name") == "score"]
    return LabelledMask(rle, score_of(scores[0] if scores else None, where), _label(shape))


def _label(shape: Element) -> str:
    return shape.get("label") or LABEL


FORMAT = Format("cvat", "CVAT for images 1.1", write, read)
