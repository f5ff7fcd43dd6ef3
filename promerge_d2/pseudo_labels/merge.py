"""From a store to one COCO JSON: every image checked against the manifest, one at a time."""

from __future__ import annotations

import collections
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from promerge_d2.coco.write import coco_writer
from promerge_d2.pseudo_labels.store import Index, NotFinished, Store, parts_of, writing
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path

logger = logging.getLogger(__name__)

NAMED = 10  # of missing images, in a message


@dataclass
class Labelled:
    """What became of the images of an output, or of a shard.

    Attributes:
        images: images processed, with or without masks.
        masks: masks found.
        reasons: how many images have no mask, by reason.
        failures: name and message (and traceback, of unexpected errors) of every image that could
            not be processed.
    """

    images: int = 0
    masks: int = 0
    reasons: collections.Counter = field(default_factory=collections.Counter)
    failures: list[dict[str, str]] = field(default_factory=list)

    def count(self, record: dict) -> None:
        """Count an image that was processed."""
        self.images += 1
        self.masks += len(record["masks"])
        if "reason" in record:
            self.reasons[record["reason"]] += 1


def merge_labels(output: str | os.PathLike) -> Labelled:
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
    records, failures = store.index("records"), store.index("failures")
    tell_damaged(records.damaged + failures.damaged)
    missing = np.flatnonzero(~(records.found | failures.found))
    if missing.size:
        raise _missing(store, missing)
    labelled = Labelled()
    with writing(output), coco_writer(output, store.manifest.info) as out:
        for record in _records(store, records):
            labelled.count(record)
            out.add_image({key: value for key, value in record.items() if key != "masks"})
            for mask in record["masks"]:
                out.add_annotation({"image_id": record["id"], **mask})
    failed = np.flatnonzero(failures.found & ~records.found).tolist()
    labelled.failures = [failures[place] for place in failed]
    records.close()
    failures.close()
    return labelled


def tell(labelled: Labelled, reasons: Mapping[str, str]) -> None:
    """Print what a label file lacks: images without masks, with what the reasons mean; failures."""
    for reason, count in sorted(labelled.reasons.items()):
        meaning = f" ({reasons[reason]})" if reason in reasons else ""
        print(f"  {count} images without a mask: {reason}{meaning}")
    if labelled.failures:
        print(f"  {len(labelled.failures)} images failed:")
        for failure in labelled.failures:
            print(f"    {failure['file_name']}: {failure['error']}")


def tell_damaged(damaged: list[str]) -> None:
    """Warn of damaged lines, of the first ones by name."""
    for message in damaged[:NAMED]:
        logger.warning("%s; it is taken for missing", message)
    if len(damaged) > NAMED:
        logger.warning("... and %d more damaged lines", len(damaged) - NAMED)


def _missing(store: Store, places: np.ndarray) -> NotFinished:
    wanted = set(places.tolist())
    names = [e.name for place, e in enumerate(store.manifest.entries()) if place in wanted]
    listing = store.folder / "missing.txt"
    with writing(listing), atomic_path(listing) as part:
        part.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    shown = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return NotFinished(
        f"{len(names)} of {store.manifest.count} images are not labelled yet: {shown} (all in "
        f"{listing}); run the same label_images command again"
    )


def _records(store: Store, index: Index) -> Iterator[dict]:
    """The records in the order of the manifest, of images that did not fail."""
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
