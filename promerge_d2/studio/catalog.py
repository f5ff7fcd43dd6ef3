"""A label file in columns, so that a question about all its masks takes milliseconds.

Shape letters: N photographs, A annotations.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import unicodedata
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from promerge_d2.coco.index import CocoIndex, stamp_of
from promerge_d2.coco.json_stream import JsonStream
from promerge_d2.coco.read import CocoSource
from promerge_d2.coco.records import ImageInfo, Instance
from promerge_d2.coco.write import CATEGORIES
from promerge_d2.features.weights import cache_dir
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import sha256_of

logger = logging.getLogger(__name__)

SIZES = {"small": (0.0, 0.01), "medium": (0.01, 0.1), "large": (0.1, 1.01)}
"""Masks by their share of the photograph: from the first (included) to the second."""

ORDERS = ("file", "name", "most", "fewest", "best", "worst")
STATUSES = ("any", "todo", "edited", "reviewed")


class Catalog:
    """What is asked of all photographs at once.

    Args:
        path: the COCO JSON; it must stay as it is while it is in use.

    Attributes:
        index: the file, image by image.
        sha256: of the file.
        info: its ``info``.
        names: N file names.
        reasons: N reasons why there is no mask, None where the file does not say.
        owner: (A,) int32, the photograph of each annotation.
        rank: (A,) int32, from 0: how many masks of the photograph score higher; ties as in the
            file; what is no mask comes last.
        share: (A,) float32, area of the mask by that of the photograph.

    Raises:
        UserError: the file is missing or broken.
        RecordError: a record is refused; the message names it.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"there is no label file {path}; name the JSON that labelling wrote")
        self.sha256 = sha256_of(path)
        self.index = _index_of(self.path, self.sha256)
        self.info = CocoSource(path).info
        images = [self.index.image(place) for place in range(len(self.index))]
        self.names = [image.name for image in images]
        self.reasons = [image.reason for image in images]
        self.places = {image.id: place for place, image in enumerate(images)}
        self._folded = [fold(name) for name in self.names]
        count = np.diff(self.index.first)
        self.owner = np.repeat(np.arange(len(images), dtype=np.int32), count)
        pixels = np.array([max(1, image.size[0] * image.size[1]) for image in images], np.float32)
        self.share = self.index.areas / pixels[self.owner]
        costs = np.where(self.index.is_plain, -self.index.scores, np.inf)
        order = np.lexsort((costs, self.owner))  # stable
        self.rank = np.empty(len(order), np.int32)
        self.rank[order] = np.arange(len(order)) - np.repeat(self.index.first[:-1], count)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, place: int) -> tuple[ImageInfo, list[Instance]]:
        """Read a photograph's entry and its objects.

        Raises:
            UserError: the file is gone or has changed.
        """
        # the mapped file would otherwise be read as it was, or where it has ended
        if stamp_of(self.index.path) != self.index.stamp:
            raise UserError(f"{self.path} was changed while it was in use; start again")
        return self.index.read(place)

    @functools.cached_property
    def categories(self) -> list[Any]:
        """The classes of the file; they may come last in it, so that they take a while to read."""
        stream = JsonStream(self.path, spans=False)
        return [each.value for each in stream if each.section == "categories"] or CATEGORIES

    def kept(self, states: np.ndarray, keep: Keep) -> np.ndarray:
        """Say which annotations are masks that are kept, (A,) bool.

        Args:
            states: (A,) int8 of ``State``.
            keep: what decides of those that nobody has decided on.
        """
        plain = self.index.is_plain
        open_ = (states == OPEN) & (self.index.scores >= np.float32(keep.score))
        if keep.best is not None:
            open_ &= self.rank < keep.best
        return plain & ((states == ACCEPTED) | open_)

    def per_photograph(self, which: np.ndarray) -> np.ndarray:
        """Count annotations (A,) bool by photograph, (N,) int64."""
        sums = np.concatenate([[0], np.cumsum(which)])
        return sums[self.index.first[1:]] - sums[self.index.first[:-1]]

    def named(self, text: str) -> np.ndarray:
        """Say which file names hold a text in whatever case, (N,) bool."""
        wanted = fold(text)
        return np.array([wanted in name for name in self._folded], bool)

    def reason_counts(self) -> list[tuple[str, int]]:
        """Count photographs by reason, the most frequent first."""
        return collections.Counter(filter(None, self.reasons)).most_common()

    def score_range(self) -> tuple[float, float]:
        """Return the lowest and the highest score of a mask; of none (0, 0)."""
        scores = self.index.scores[self.index.is_plain]
        return (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 0.0)

    def score_histogram(self, low: float, high: float, bins: int = 50) -> list[int]:
        """Count masks by score, in equal steps from ``low`` to ``high``."""
        scores = self.index.scores[self.index.is_plain]
        return np.histogram(scores, bins, (low, high))[0].tolist()


def _index_of(path: Path, sha256: str) -> CocoIndex:
    """Index a file, or take the index of an earlier start from the user's cache."""
    cached = cache_dir() / "studio" / f"{sha256}.npz"
    if cached.is_file():
        with contextlib.suppress(ValueError, OSError, KeyError, zipfile.BadZipFile):
            return CocoIndex.load(cached, path)
        logger.warning("%s is broken; the label file is read anew", cached)
    index = CocoIndex(path)
    index.tally.log(index.path)
    try:
        index.save(cached)
    except (UserError, OSError) as error:
        logger.warning("the next start will not be faster: %s", error)
    return index


OPEN, ACCEPTED, REJECTED, MERGED = range(4)
STATE_NAMES = ("open", "accepted", "rejected", "merged")
"""What was decided on a mask; one that is merged lives on in another."""


@dataclass(frozen=True)
class Keep:
    """What is kept of the masks that nobody has decided on.

    Attributes:
        score: those of this score or more.
        best: so many of each photograph, by score; None for all.
    """

    score: float = 0.0
    best: int | None = None


@dataclass(frozen=True)
class Wanted:
    """Which photographs are looked for; all conditions hold together.

    Attributes:
        text: part of the file name.
        reason: why there is no mask; empty for any.
        least, most: masks that are kept.
        size: a key of ``SIZES``: a kept mask of that size; empty for any.
        low, high: the best score of a kept mask is in this range; None for any, also for none.
        status: of ``STATUSES``.
        order: of ``ORDERS``.
    """

    text: str = ""
    reason: str = ""
    least: int = 0
    most: int | None = None
    size: str = ""
    low: float | None = None
    high: float | None = None
    status: str = "any"
    order: str = "file"


def fold(text: str) -> str:
    """Return a text as it is compared."""
    return unicodedata.normalize("NFC", text).casefold()
