"""COCO-style JSON files of any size, section by section."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from promerge_d2.coco.json_stream import JsonStream
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import read_json

WHOLE = 16 << 20  # bytes; a file of this size becomes some 150 MB of Python objects


@dataclass(frozen=True)
class Sections:
    """A file with ``images`` and ``annotations``, or a bare list of records.

    Attributes:
        name: the file, for messages.
        content: what it holds, None if it is streamed.
        is_list: whether it is a bare list.
    """

    name: str
    content: Any
    is_list: bool

    @classmethod
    def open(cls, path: str | os.PathLike, what: str) -> Sections:
        """Open a file; up to ``WHOLE`` bytes it is read at once, beyond it is streamed.

        Args:
            path: the file.
            what: its role, for messages.

        Raises:
            UserError: it is missing, empty or no JSON (a streamed file: when that is reached).
        """
        try:
            if os.path.getsize(path) <= WHOLE:
                return cls.of(read_json(path, what), os.fspath(path))
            with open(path, "rb") as file:
                return cls(os.fspath(path), None, file.read(64).lstrip()[:1] == b"[")
        except OSError as error:
            raise UserError(f"cannot read the {what} {path}: {error.strerror}") from error

    @classmethod
    def of(cls, content: Any, name: str) -> Sections:
        """Parsed JSON under a name."""
        return cls(name, content, isinstance(content, list))

    def has(self, key: str) -> bool:
        """Whether there is a section of that name."""
        if self.content is not None:
            return isinstance(self.content, dict) and key in self.content
        stream = JsonStream(self.name, spans=False)
        return any(key in stream.sections for _ in stream) or key in stream.sections

    def description(self) -> str:
        """What the file's ``info`` says of it, or nothing; of a streamed file, if it comes first.

        Label files name their weights there.
        """
        first = self.content
        if first is None and not self.is_list:
            element = next(iter(JsonStream(self.name, spans=False)), None)
            first = {element.section: element.value} if element else None
        info = first.get("info") if isinstance(first, dict) else None
        said = info.get("description") if isinstance(info, dict) else None
        return said if isinstance(said, str) else ""

    def records(self, key: str) -> Iterable[Any]:
        """The records of a section, or with an empty key of the bare list.

        Raises:
            UserError: there is no such list; of a streamed file, when its end is reached.
        """
        if self.is_list and key:
            raise self._no_list(key)
        if self.content is None:
            return self._streamed(key)
        if self.is_list:
            return self.content
        if not isinstance(self.content, dict) or not isinstance(self.content.get(key), list):
            raise self._no_list(key)
        return self.content[key]

    def _streamed(self, key: str) -> Iterator[Any]:
        stream = JsonStream(self.name, spans=False)
        for element in stream:
            if element.section == key:
                yield element.value
            elif key == "images" and key in stream.lists:
                return  # the rest is for those who read the annotations
        if key not in stream.lists:
            raise self._no_list(key)

    def _no_list(self, key: str) -> UserError:
        return UserError(f"{self.name} is not a COCO-style file: it has no list {key!r}")
