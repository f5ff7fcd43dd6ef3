"""What became of the images of an output: counted from its store, printed by the tools."""

from __future__ import annotations

import collections
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from promerge_d2.pseudo_labels.store import Store

logger = logging.getLogger(__name__)

NAMED = 10  # damaged lines in the log


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
