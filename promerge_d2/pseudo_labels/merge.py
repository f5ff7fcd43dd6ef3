"""From a store to one COCO JSON, an image at a time, and to a summary that tools print."""

from __future__ import annotations

import collections
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from promerge_d2.coco.write import coco_writer
from promerge_d2.pseudo_labels.store import Index, NotFinished, Store, guard_write, parts_of
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path
from promerge_d2.utils.progress import late_progress

logger = logging.getLogger(__name__)

NAMED = 10  # missing images, or damaged lines, in a message


@dataclass
class RunSummary:
    """What became of the images of an output, or of a shard.

    Attributes:
        images: images processed, with or without masks.
        masks: masks found.
        reasons: how many images have no mask, by reason.
        failures: of every image that could not be processed its ``id``, ``file_name``, ``error``
            and, where the error was unexpected, ``traceback``: as the store has them.
        seconds: time by stage, summed over images.
    """

    images: int = 0
    masks: int = 0
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[dict] = field(default_factory=list)
    seconds: collections.Counter[str] = field(default_factory=collections.Counter)

    def count(self, record: dict) -> None:
        """Count an image that was processed."""
        self.images += 1
        self.masks += len(record["masks"])
        if "reason" in record:
            self.reasons[record["reason"]] += 1


def summarize_shard(store: Store, shard: int, shards: int) -> RunSummary:
    """Count what the store knows of a shard's images.

    Args:
        store: the store.
        shard: from 0.
        shards: how many there are.
    """
    summary = RunSummary(failures=store.failures(shard, shards))
    with store.index("records") as records:
        for place in range(shard, store.manifest.count, shards):
            if records.found[place]:
                summary.count(records[place])
    return summary


def print_summary(summary: RunSummary, reasons: Mapping[str, str]) -> None:
    """Print which images have no mask, with what the reasons mean, and which failed.

    Args:
        summary: of a run or a merge.
        reasons: of the mask generator, key to meaning.
    """
    for reason, count in sorted(summary.reasons.items()):
        meaning = f" ({reasons[reason]})" if reason in reasons else ""
        print(f"  {count} images without a mask: {reason}{meaning}")
    if summary.failures:
        print(f"  {len(summary.failures)} images failed:")
        for failure in summary.failures:
            print(f"    {failure['file_name']}: {failure['error']}")


def log_damage(damaged: list[str]) -> None:
    """Warn of damaged lines of a store; the first ones are named."""
    for message in damaged[:NAMED]:
        logger.warning("%s; it is taken for missing", message)
    if len(damaged) > NAMED:
        logger.warning("... and %d more damaged lines", len(damaged) - NAMED)


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
        text = "".join(f"{name}\n" for name in names)
        part.write_text(text, encoding="utf-8", errors="surrogateescape")  # names as on disk
    shown = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return NotFinished(
        f"{len(names)} of {store.manifest.count} images are not labelled yet: {shown} (all in "
        f"{listing}); run the same labelling again"
    )


def _iter_records(store: Store, index: Index) -> Iterator[dict]:
    """Yield the records in the order of the manifest, of images that did not fail."""
    found = index.found
    entries = late_progress(
        store.manifest.entries(), total=store.manifest.count, desc="writing", unit="image"
    )
    for place, entry in enumerate(entries):
        if not found[place]:
            continue
        record = index[place]
        if (record["id"], record["file_name"]) != (entry.id, entry.name):
            raise UserError(
                f"a record in {store.folder} is of {record['file_name']} (id {record['id']}), but "
                f"the manifest has {entry.name} (id {entry.id}) in its place"
            )
        yield record
