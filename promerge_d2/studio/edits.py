"""What a person decided on masks: states, undo and redo, and the log they are read from again.

The log has a JSON object a line. The first names the label file by its hash; each of the others is
one thing that was done, in order, undoing included: to read the log is to do it all again.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from promerge_d2.studio.catalog import ACCEPTED, MERGED, OPEN, REJECTED, Catalog
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import make_folder

logger = logging.getLogger(__name__)

FORMAT = 1
DECISIONS = {"accept": ACCEPTED, "reject": REJECTED, "reopen": OPEN}
ACTIONS = (*DECISIONS, "merge", "finish", "only", "replace")


class UnknownId(UserError):
    """A photograph or a mask that there is not."""


@dataclass
class Added:
    """A mask that is not in the label file.

    Attributes:
        score: of it.
        parents: the numbers of the masks that it unites; none where it was found anew.
        record: of a mask that was found anew: ``segmentation``, ``area``, ``bbox``, ``score``.
        state: as of the others.
    """

    score: float
    parents: tuple[int, ...]
    record: dict[str, Any] | None = None
    state: int = OPEN


@dataclass(frozen=True)
class Decided:
    """What was decided at some moment.

    Attributes:
        states: (A,) int8, of the file's masks.
        added: by photograph, masks that were added.
    """

    states: np.ndarray
    added: dict[int, list[Added]]

    def count(self, state: int) -> int:
        """Count the masks of a state, those that were added too."""
        more = sum(each.state == state for added in self.added.values() for each in added)
        return int((self.states == state).sum()) + more


@dataclass(frozen=True)
class _Done:
    """Something that was done, with what it takes to undo it."""

    entry: dict[str, Any]
    place: int
    before: dict[int, int]  # states, by the mask's number
    reviewed: bool
    added: int  # masks of the photograph that were added before


class Edits:
    """The decisions on a label file.

    Args:
        catalog: the label file.

    Attributes:
        states: (A,) int8, of the file's masks.
        reviewed: (N,) bool, photographs that are done with.
        added: by photograph, masks that were added.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.states = np.zeros(len(catalog.owner), np.int8)
        self.reviewed = np.zeros(len(catalog), bool)
        self.added: dict[int, list[Added]] = {}
        self._done: list[_Done] = []
        self._undone: list[dict[str, Any]] = []

    @property
    def can_undo(self) -> bool:
        """Whether something was done."""
        return bool(self._done)

    @property
    def can_redo(self) -> bool:
        """Whether something was undone, and nothing else done since."""
        return bool(self._undone)

    @property
    def edited(self) -> np.ndarray:
        """Which photographs have a decision, (N,) bool."""
        index = self._catalog.index
        has = np.zeros(len(self._catalog), bool)
        has[self._catalog.owner[(self.states != OPEN) & index.is_plain]] = True
        has[[place for place, added in self.added.items() if added]] = True
        return has | self.reviewed

    def snapshot(self) -> Decided:
        """Return what is decided now, untouched by what comes."""
        return Decided(self.states.copy(), copy.deepcopy(self.added))

    def state(self, place: int, number: int) -> int:
        """Return what was decided on a mask."""
        row, added = self._find(place, number)
        return int(self.states[row]) if added is None else added.state

    def score(self, place: int, number: int) -> float:
        """Return the score of a mask."""
        row, added = self._find(place, number)
        return float(self._catalog.index.scores[row]) if added is None else added.score

    def do(self, entry: dict[str, Any]) -> int:
        """Do what an entry of the log says.

        Args:
            entry: ``do``: one of ``ACTIONS``, with the photograph's id as ``image`` and the numbers
                of ``masks``; or ``undo``, ``redo``. ``finish`` accepts the masks and makes the
                photograph a reviewed one; ``only`` also rejects all that are undecided then;
                ``replace`` rejects the masks and adds new ``records``.

        Returns:
            The place of the photograph that it was about.

        Raises:
            UserError: it cannot be done; nothing has changed then.
        """
        action = entry["do"]
        if action == "undo":
            return self._undo()
        if action == "redo":
            if not self._undone:
                raise UserError("there is nothing to redo")
            place = self._apply(self._undone[-1])
            self._undone.pop()
            return place
        place = self._apply(entry)
        self._undone.clear()
        return place

    def _apply(self, entry: dict[str, Any]) -> int:
        place = self._catalog.places.get(entry["image"])
        if place is None:
            raise UnknownId(f"there is no photograph with the id {entry['image']!r}")
        masks = list(dict.fromkeys(entry["masks"]))
        action = entry["do"]
        before = {number: self.state(place, number) for number in masks}
        if action == "only":
            before |= {number: OPEN for number in self.undecided(place)}
        added = self.added.setdefault(place, [])
        done = _Done(entry, place, before, bool(self.reviewed[place]), len(added))
        if action in DECISIONS:
            self._set(place, masks, DECISIONS[action])
        elif action == "merge":
            if len(masks) < 2:
                raise UserError("to merge takes two masks or more")
            if gone := [number for number in masks if before[number] == MERGED]:
                raise UserError(f"mask {gone[0]} is part of another already")
            score = max(self.score(place, number) for number in masks)
            self._set(place, masks, MERGED)
            added.append(Added(score, tuple(masks), state=ACCEPTED))
        elif action in ("finish", "only"):
            self._set(place, masks, ACCEPTED)
            if action == "only":
                self._set(place, self.undecided(place), REJECTED)
            self.reviewed[place] = True
        elif action == "replace":
            self._set(place, masks, REJECTED)
            added += [Added(record["score"], (), record) for record in entry["records"]]
        else:
            raise UserError(f"{action!r} is none of {', '.join(ACTIONS)}")
        self._done.append(done)
        return place

    def _undo(self) -> int:
        if not self._done:
            raise UserError("there is nothing to undo")
        done = self._done.pop()
        for number, state in done.before.items():
            self._set(done.place, [number], state)
        del self.added[done.place][done.added :]
        self.reviewed[done.place] = done.reviewed
        self._undone.append(done.entry)
        return done.place

    def _set(self, place: int, masks: Sequence[int], state: int) -> None:
        for number in masks:
            row, added = self._find(place, number)
            if added is None:
                self.states[row] = state
            else:
                added.state = state

    def undecided(self, place: int) -> list[int]:
        """Return the masks of a photograph that nobody has decided on."""
        first, last = self._catalog.index.first[place : place + 2].tolist()
        plain = self._catalog.index.is_plain[first:last]
        found = np.flatnonzero(plain & (self.states[first:last] == OPEN)).tolist()
        more = enumerate(self.added.get(place, ()), last - first)
        return found + [number for number, each in more if each.state == OPEN]

    def _find(self, place: int, number: int) -> tuple[int, Added | None]:
        """Return the row of a mask in the catalog, or the mask that was added."""
        first, last = self._catalog.index.first[place : place + 2].tolist()
        if 0 <= number < last - first and self._catalog.index.is_plain[first + number]:
            return first + number, None
        more = self.added.get(place, ())
        if last - first <= number < last - first + len(more):
            return -1, more[number - (last - first)]
        raise UnknownId(f"{self._catalog.names[place]} has no mask {number}")


class EditLog:
    """The log on the disk; what ``append`` has returned from survives any stop.

    Args:
        path: the log; it is begun if it is not there.
        catalog: the label file that it is of.

    Raises:
        UserError: it is of another label file, broken, or cannot be written.
    """

    def __init__(self, path: Path, catalog: Catalog) -> None:
        self.path = path
        self.edits = Edits(catalog)
        self._broken = ""
        make_folder(path.parent)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose --folder") from error
        try:
            self.entries = self._take_up(catalog)
        except BaseException:
            self.close()
            raise

    def _take_up(self, catalog: Catalog) -> int:
        """Do all again that the log says; return how many entries it has."""
        with open(self.path, "rb") as file:
            content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # the process was killed while it wrote
            logger.warning("%s ends in half an entry, which is dropped", self.path)
            os.ftruncate(self._file, whole)
        lines = content[:whole].splitlines()
        if not lines:
            self._write({"studio": FORMAT, "labels": catalog.path.name, "sha256": catalog.sha256})
            return 0
        head = self._parse(lines[0], 1)
        if head.get("studio") != FORMAT:
            raise UserError(f"{self.path} is no log of edits; move it away")
        if head.get("sha256") != catalog.sha256:
            raise UserError(
                f"{self.path} holds edits of another file than {catalog.path} is now (it was "
                f"{head.get('labels')}, SHA-256 {str(head.get('sha256'))[:12]}...); move the log "
                "away to begin anew, or name the file that it is of"
            )
        for number, line in enumerate(lines[1:], 2):
            entry = self._parse(line, number)
            try:
                self.edits.do(entry)
            except (UserError, LookupError, TypeError) as error:
                raise UserError(
                    f"{self.path}, line {number}: cannot be done again: {error}; move the log away"
                ) from error
        return len(lines) - 1

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                return entry
        raise UserError(f"{self.path}, line {number}: no JSON object; move the log away")

    def append(self, entry: dict[str, Any]) -> int:
        """Do what an entry says and put it on the disk; returns as ``Edits.do``.

        Raises:
            UserError: it cannot be done, or cannot be written.
        """
        if self._broken:
            raise UserError(self._broken)
        place = self.edits.do(entry)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self._write({**entry, "time": now})
        self.entries += 1
        return place

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        before = os.fstat(self._file).st_size
        try:
            if (written := os.write(self._file, line)) < len(line):
                os.write(self._file, line[written:])  # says why
            os.fsync(self._file)
        except OSError as error:
            self._broken = (
                f"cannot write {self.path}: {error.strerror}; what was done last is not kept: make "
                "room and start again"
            )
            os.ftruncate(self._file, before)
            raise UserError(self._broken) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
