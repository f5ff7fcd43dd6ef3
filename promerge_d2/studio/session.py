"""A label file that is being looked at: all that the page asks for, without HTTP."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from promerge_d2.pseudo_labels.store import locked
from promerge_d2.studio.catalog import (
    SIZES,
    STATE_NAMES,
    Catalog,
    Keep,
    Wanted,
)
from promerge_d2.studio.edits import EditLog, UnknownId
from promerge_d2.studio.outlines import fit, outline
from promerge_d2.studio.pictures import Pictures
from promerge_d2.studio.saving import added_rle, save
from promerge_d2.studio.stage_view import StageView
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import read_json

OUTLINE_SIDES = {"small": 360, "large": 900}  # pixels of the longer side, of the outlines
_DRAWN = 24  # masks of a photograph that have an outline when it is small
_OUTLINES = 500  # photographs whose outlines are held, some 10 kB each


class Session:
    """One person at work on one label file.

    Args:
        labels: the COCO JSON; it is only read.
        images: the folder that its names start from; None for the one that ``*.run.json`` beside
            it names, else its own.
        folder: for the log of edits, saved files and thumbnails; None for that of the label file.
        weights: see ``StageView``.

    Raises:
        UserError: the file is broken, another studio is at work on it, or the log is of another.
    """

    def __init__(
        self,
        labels: str | os.PathLike,
        images: str | os.PathLike | None = None,
        folder: str | os.PathLike | None = None,
        weights: str | None = None,
    ) -> None:
        labels = Path(labels)
        self.catalog = Catalog(labels)  # before anything is written
        self._folder = labels.parent if folder is None else Path(folder)
        self._stem = labels.name.removesuffix(".json")
        cache = self._folder / f"{self._stem}.studio"
        self.pictures = Pictures(_find_root(labels, images), cache)
        with contextlib.ExitStack() as held:
            held.enter_context(locked(cache / "lock", f"{labels} in a studio"))
            self.log = EditLog(self._folder / f"{self._stem}.edits.jsonl", self.catalog)
            held.callback(self.log.close)
            self._held = held.pop_all()
        self.stages = StageView(self.catalog.info, weights)
        self._lock = threading.RLock()
        self._saving = threading.Lock()
        self._written = 0
        self._file_outlines = functools.lru_cache(maxsize=_OUTLINES)(self._outlines_of_file)

    def close(self) -> None:
        """Let the log and the label file go."""
        self._held.close()

    def overview(self) -> dict[str, Any]:
        """Describe the file: what the page shows before any photograph."""
        catalog = self.catalog
        plain = catalog.index.is_plain
        lowest, highest = catalog.score_range()
        return {
            "name": catalog.path.name,
            "version": catalog.sha256[:12],
            "made_by": catalog.info.get("description", ""),
            "photographs": len(catalog),
            "masks": int(plain.sum()),
            "most": int(catalog.per_photograph(plain).max(initial=0)),
            "lowest": lowest,
            "highest": highest,
            "reasons": catalog.reason_counts(),
            "histogram": catalog.score_histogram(min(0.0, lowest), max(highest, 0.01)),
            "log": self.log.path.name,
            **self.history(),
        }

    def history(self) -> dict[str, Any]:
        """Say how many edits there are, and whether one can be undone or redone."""
        edits = self.log.edits
        return {
            "edits": self.log.entries,
            "can_undo": edits.can_undo,
            "can_redo": edits.can_redo,
            "reviewed": int(edits.reviewed.sum()),
        }

    def find(self, keep: Keep, wanted: Wanted) -> dict[str, Any]:
        """Find photographs.

        Args:
            keep: which of the masks that nobody has decided on count.
            wanted: which photographs.

        Returns:
            ``numbers``: their places, in order; ``masks``: how many are kept on them; ``kept``: how
            many in the whole file, ``with_masks``: on how many photographs; and ``history``.
        """
        catalog = self.catalog
        with self._lock:
            edits = self.log.edits
            kept = catalog.kept(edits.states, keep)
            counts = catalog.per_photograph(kept)
            for place, added in edits.added.items():
                counts[place] += sum(each.state <= 1 for each in added)
            edited, reviewed = edits.edited, edits.reviewed.copy()
        best = np.full(len(catalog), -1.0, np.float32)
        np.maximum.at(best, catalog.owner[kept], catalog.index.scores[kept])
        shown = counts >= wanted.least
        if wanted.most is not None:
            shown &= counts <= wanted.most
        if wanted.text:
            shown &= catalog.named(wanted.text)
        if wanted.reason:
            shown &= np.array([reason == wanted.reason for reason in catalog.reasons], bool)
        if wanted.size:
            low, high = SIZES[wanted.size]
            of_size = kept & (catalog.share >= low) & (catalog.share < high)
            shown &= catalog.per_photograph(of_size) > 0
        if wanted.low is not None:
            shown &= best >= np.float32(wanted.low)
        if wanted.high is not None:
            shown &= (best >= 0) & (best <= np.float32(wanted.high))
        if wanted.status != "any":
            shown &= {"todo": ~reviewed, "edited": edited, "reviewed": reviewed}[wanted.status]
        numbers = np.flatnonzero(shown)
        keys = {"most": -counts, "fewest": counts, "best": -best, "worst": best}
        if wanted.order == "name":
            numbers = np.array(sorted(numbers, key=lambda n: catalog.names[n]), np.int64)
        elif wanted.order in keys:
            numbers = numbers[np.argsort(keys[wanted.order][numbers], kind="stable")]
        return {
            "numbers": numbers.tolist(),
            "masks": int(counts[numbers].sum()),
            "kept": int(counts.sum()),
            "with_masks": int((counts > 0).sum()),
            **self.history(),
        }

    def photograph(self, place: int, side: str) -> dict[str, Any]:
        """Describe a photograph with the outlines of its masks.

        Args:
            place: of the photograph.
            side: a key of ``OUTLINE_SIDES``.

        Returns:
            Its name and size, ``masks``: by descending score ``number``, ``score``, ``rank`` (None
            of one that was added), ``state``, ``share`` of the photograph, ``path`` and the
            numbers of ``parents`` that it unites; ``view``: the size that the paths are drawn for.

        Raises:
            UnknownId: there is no such photograph.
        """
        catalog = self.catalog
        if not 0 <= place < len(catalog):
            raise UnknownId(f"there is no photograph {place}")
        with self._lock:
            image, objects = self.catalog.read(place)
            height, width = fit(*image.size, OUTLINE_SIDES[side])
            first = int(catalog.index.first[place])
            edits = self.log.edits
            masks: list[dict[str, Any]] = [
                {
                    "number": number,
                    "score": float(catalog.index.scores[first + number]),
                    "rank": int(catalog.rank[first + number]),
                    "state": STATE_NAMES[edits.states[first + number]],
                    "share": float(catalog.share[first + number]),
                    "path": path,
                    "parents": [],
                }
                for number, path in self._file_outlines(place, side)
            ]
            added = edits.added.get(place, [])
            pixels = max(1, image.size[0] * image.size[1])
            for number, each in enumerate(added, len(objects)):
                rle = added_rle(each, objects, added)
                masks.append(
                    {
                        "number": number,
                        "score": each.score,
                        "rank": None,
                        "state": STATE_NAMES[each.state],
                        "share": float(mask_api.area(rle)) / pixels,
                        "path": outline(rle, height, width),
                        "parents": list(each.parents),
                    }
                )
            reviewed = bool(edits.reviewed[place])
        masks.sort(key=lambda mask: -mask["score"])
        return {
            "number": place,
            "id": image.id,
            "name": image.name,
            "height": image.height,
            "width": image.width,
            "reason": image.reason or "",
            "reviewed": reviewed,
            "view": [width, height],
            "masks": masks,
        }

    def _outlines_of_file(self, place: int, side: str) -> list[tuple[int, str]]:
        image, objects = self.catalog.read(place)
        height, width = fit(*image.size, OUTLINE_SIDES[side])
        first = int(self.catalog.index.first[place])
        plain = self.catalog.index.is_plain
        rank = self.catalog.rank
        # sliders keep the best, so a card draws these and what was decided on
        drawn = _DRAWN if side == "small" else len(plain)
        return [
            (number, outline(item.rle, height, width) if rank[first + number] < drawn else "")
            for number, item in enumerate(objects)
            if plain[first + number] and item.rle is not None
        ]

    def edit(self, place: int, action: str, masks: list[int]) -> None:
        """Decide on masks of a photograph, see ``Edits.do``."""
        with self._lock:
            self.log.append({"do": action, "image": self._id(place), "masks": masks})

    def undo(self) -> int:
        """Undo what was done last; returns the place of its photograph."""
        with self._lock:
            return self.log.append({"do": "undo"})

    def redo(self) -> int:
        """Do again what was undone last; returns the place of its photograph."""
        with self._lock:
            return self.log.append({"do": "redo"})

    def run_stages(self, place: int, settings: dict[str, float]) -> dict[str, Any]:
        """Take a photograph through the labeler's stages, see ``StageView.run``."""
        self._id(place)
        photo = self.pictures.find(self.catalog.names[place])
        return self.stages.run(place, photo, settings)

    def replace(self, place: int, settings: dict[str, float]) -> None:
        """Label a photograph anew; masks that nobody has decided on make room for the new ones."""
        image_id = self._id(place)
        photo = self.pictures.find(self.catalog.names[place])
        result = self.stages.label(place, photo, settings)
        image = self.catalog.index.image(place)
        if (result.height, result.width) != image.size:
            raise UserError(
                f"{image} is {result.width} x {result.height} pixels now, but {image.width} x "
                f"{image.height} in the labels"
            )
        with self._lock:
            edits = self.log.edits
            entry = {"do": "replace", "image": image_id, "masks": edits.undecided(place)}
            self.log.append({**entry, "records": result.records})

    def save(self, keep: Keep, accepted_only: bool) -> dict[str, Any]:
        """Write a new file beside the log; none that is there is written over.

        Returns:
            Its ``file`` name, the numbers of ``photographs`` and ``masks``.

        Raises:
            UserError: it cannot be written.
        """
        with self._lock:
            decided = self.log.edits.snapshot()
        log = self.log.path.name
        with self._saving:
            self._written = 0
            path = self._free_name()
            photographs, masks = save(
                self.catalog, decided, keep, accepted_only, path, log, self._note_written
            )
        return {"file": str(path), "photographs": photographs, "masks": masks}

    def _note_written(self, photographs: int) -> None:
        self._written = photographs

    def saving(self) -> dict[str, int]:
        """Say how many photographs the last or present ``save`` has ``written``, of how many."""
        return {"written": self._written, "photographs": len(self.catalog)}

    def _free_name(self) -> Path:
        number = 1
        while True:
            tail = f"-{number}" if number > 1 else ""
            path = self._folder / f"{self._stem}.edited{tail}.json"
            if not path.exists():
                return path
            number += 1

    def _id(self, place: int) -> int | str:
        if not 0 <= place < len(self.catalog):
            raise UnknownId(f"there is no photograph {place}")
        return self.catalog.index.image(place).id


def _find_root(labels: Path, images: str | os.PathLike | None) -> Path:
    """Return the folder of the photographs.

    Raises:
        UserError: it is no folder.
    """
    if images is not None:
        if not Path(images).is_dir():
            raise UserError(f"--images {images} is no folder")
        return Path(images)
    run = labels.with_name(f"{labels.stem}.run.json")
    if run.is_file():
        content = read_json(run, "record of the run")
        root = content.get("image_root") if isinstance(content, dict) else None
        if isinstance(root, str) and Path(root).is_dir():
            return Path(root)
    return labels.parent
