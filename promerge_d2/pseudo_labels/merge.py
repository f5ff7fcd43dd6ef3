"""From a store to one COCO JSON: every image checked against the manifest, one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from promerge_d2.coco.write import coco_writer
from promerge_d2.pseudo_labels.store import Index, NotFinished, Store, guard_write, parts_of
from promerge_d2.pseudo_labels.summary import RunSummary, log_damage
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path

NAMED = 10  # of missing images, in a message


def merge_labels(output: str | os.PathLike) -> RunSummary:
    """Write ``output`` (COCO JSON) from its store ``OUTPUT.parts``.

    Images come in the order of the manifest, so that the bytes do not depend on how the work was
    split. Images that failed are left out and named. Memory holds 32 bytes an image and a record.

    Args:
        output: the JSON to write.

    Returns:
        What was written.

    Raises:
        UserError: there is no store, or one of its files belongs to another.
        NotFinished: images are missing, named in the message and in ``missing.txt`` of the store;
            or the disk is full.
    """
    store = Store(parts_of(output))
    with store.index("records") as records, store.index("failures") as failures:
        log_damage(records.damaged + failures.damaged)
        missing = np.flatnonzero(~(records.found | failures.found))
        if missing.size:
            raise _missing(store, missing)
        summary = RunSummary(failures=store.failures())
        with guard_write(output), coco_writer(output, store.manifest.info) as out:
            for record in _iter_records(store, records):
                summary.count(record)
                out.add_image({key: value for key, value in record.items() if key != "masks"})
                for mask in record["masks"]:
                    out.add_annotation({"image_id": record["id"], **mask})
    return summary


def _missing(store: Store, places: np.ndarray) -> NotFinished:
    wanted = set(places.tolist())
    names = [e.name for place, e in enumerate(store.manifest.entries()) if place in wanted]
    listing = store.folder / "missing.txt"
    with guard_write(listing), atomic_path(listing) as part:
        part.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    shown = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return NotFinished(
        f"{len(names)} of {store.manifest.count} images are not labelled yet: {shown} (all in "
        f"{listing}); run the same label_images command again"
    )


def _iter_records(store: Store, index: Index) -> Iterator[dict]:
    """Yield the records in the order of the manifest, of images that did not fail."""
    found = index.found
    for place, entry in enumerate(store.manifest.entries()):
        if not found[place]:
            continue
        record = index[place]
        if (record["id"], record["file_name"]) != (entry.id, entry.name):
            raise UserError(
                f"a record in {store.folder} is of {record['file_name']} (id {record['id']}), but "
                f"the manifest has {entry.name} (id {entry.id}) in its place"
            )
        yield record
