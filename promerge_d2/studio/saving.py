"""Decisions and the label file to a new COCO JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_api

from promerge_d2.coco.records import Instance, rle_record
from promerge_d2.coco.write import coco_writer
from promerge_d2.studio.catalog import ACCEPTED, MERGED, OPEN, REJECTED, Catalog, Keep
from promerge_d2.studio.edits import Added, Decided

NOTHING_LEFT = "rejected_by_hand"
"""The ``reason`` of a photograph that had masks in the label file and has none in the new one."""


def save(
    catalog: Catalog,
    decided: Decided,
    keep: Keep,
    accepted_only: bool,
    path: Path,
    log: str,
    written: Callable[[int], None] = lambda photographs: None,
) -> tuple[int, int]:
    """Write what is kept; the photographs and their order are those of the label file.

    Annotations are as in the label file but for their ids, which are counted anew. Crowds, and
    objects without a mask, stay as they are.

    Args:
        catalog: the label file.
        decided: what was decided.
        keep: decides of the other masks.
        accepted_only: leave those out instead.
        path: the new file.
        log: name of the log, for the record.
        written: told after each photograph how many are written.

    Returns:
        How many photographs and masks were written.

    Raises:
        UserError: the file cannot be written.
    """
    kept = catalog.kept(decided.states, keep)
    if accepted_only:
        kept &= decided.states == ACCEPTED
    first, is_plain = catalog.index.first.tolist(), catalog.index.is_plain
    info = {
        **catalog.info,
        "studio": {
            "labels": catalog.path.name,
            "labels_sha256": catalog.sha256,
            "edits": log,
            "score": keep.score,
            "best": keep.best,
            "accepted_only": accepted_only,
            "accepted": decided.count(ACCEPTED),
            "rejected": decided.count(REJECTED),
            "merged": decided.count(MERGED),
        },
    }
    masks = 0
    with coco_writer(path, info, catalog.categories) as out:
        for place in range(len(catalog)):
            image, objects = catalog.read(place)
            rows = range(first[place], first[place + 1])
            records = [
                item.where.record
                for row, item in zip(rows, objects, strict=True)
                if kept[row] or not is_plain[row]
            ]
            for added in decided.added.get(place, ()):
                if added.state == ACCEPTED or (added.state == OPEN and not accepted_only):
                    records.append(added_record(added, objects, decided.added[place]))
            entry = image.record()
            if records:
                entry.pop("reason", None)
            elif objects:
                entry["reason"] = NOTHING_LEFT
            out.add_image(entry)
            for record in records:
                record = {key: value for key, value in record.items() if key != "id"}
                out.add_annotation({**record, "image_id": image.id})
            masks += len(records)
            written(place + 1)
    return len(catalog), masks


def added_rle(added: Added, objects: list[Instance], others: list[Added]) -> dict[str, Any]:
    """Return the mask of one that was added, as compressed RLE.

    Args:
        added: the mask.
        objects: the photograph's, of the label file.
        others: all that were added to the photograph.
    """
    if added.record is not None:
        segmentation = added.record["segmentation"]
        return {"size": segmentation["size"], "counts": segmentation["counts"].encode()}
    parts = []
    for number in added.parents:
        if number < len(objects):
            parts.append(objects[number].rle)
        else:
            parts.append(added_rle(others[number - len(objects)], objects, others))
    return mask_api.merge(parts)


def added_record(added: Added, objects: list[Instance], others: list[Added]) -> dict[str, Any]:
    """Make the annotation of a mask that was added; arguments as of ``added_rle``."""
    classes = {
        objects[number].where.record["category_id"]
        for number in added.parents
        if number < len(objects) and "category_id" in objects[number].where.record
    }
    # of masks of several classes none says what the union is: the writer's own class then
    own_class = {"category_id": classes.pop()} if len(classes) == 1 else {}
    return {**rle_record(added_rle(added, objects, others), added.score), **own_class}
