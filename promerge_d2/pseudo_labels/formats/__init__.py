"""Label files in the formats of other tools: ``promerge export`` and ``promerge import --from``.

A format is a module with a ``Format``: ``write`` takes images one by one, ``read`` yields them.
``base.py`` has what they share, ``outlines.py`` makes polygons of masks. Frame everywhere: pixels
of the upright image.
"""

from promerge_d2.pseudo_labels.formats import (
    coco,
    cvat,
    label_studio,
    png,
    sa1b,
    voc,
    yolo,
)
from promerge_d2.pseudo_labels.formats.base import Format

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        yolo.FORMAT,
        voc.FORMAT,
        label_studio.FORMAT,
        cvat.FORMAT,
        sa1b.FORMAT,
        png.FORMAT,
        coco.POLYGONS,
        coco.RFDETR,
    )
}
