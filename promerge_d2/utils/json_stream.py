"""Go through a JSON file that is too large to hold: the elements of its lists, one by one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from promerge_d2.utils.errors import UserError

_CHUNK = 1 << 20  # bytes read at once
_LONGEST = 1 << 28  # bytes of one element; what goes on for longer is broken
_SPACE = " \t\n\r"


class Element(NamedTuple):
    """An element of a list in the file, or a value that is no list.

    Attributes:
        section: its key in the file's object; ``""`` where the file itself is a list.
        start: first byte of it in the file.
        end: the byte after it.
        value: what it says.
    """

    section: str
    start: int
    end: int
    value: Any


class JsonStream:
    """Iterates over the elements of the lists of a JSON file, in their order.

    The file is an object of lists (as COCO's) or a list. Memory holds a piece of it at a time.

    Args:
        path: the file.
        what: its role, for messages.

    Attributes:
        sections: the keys met so far, also of empty lists; ``[""]`` where the file is a list.

    Raises:
        UserError: while iterating: the file cannot be read, or is no JSON of that form.
    """

    def __init__(self, path: str | os.PathLike, what: str = "file") -> None:
        self.path = path
        self.what = what
        self.sections: list[str] = []
        # Latin-1: one character a byte, whatever the text is
        self._text = ""
        self._place = 0  # in the text
        self._base = 0  # of the text, in the file
        self._decoder = json.JSONDecoder()

    def __iter__(self) -> Iterator[Element]:
        try:
            with open(self.path, "rb") as file:
                yield from self._walk(file)
        except OSError as error:
            raise UserError(f"cannot read the {self.what} {self.path}: {error.strerror}") from error

    def _walk(self, file: BinaryIO) -> Iterator[Element]:
        self.sections, self._text, self._place, self._base = [], "", 0, 0
        opening = self._next(file)
        if opening == "[":
            self.sections.append("")
            yield from self._list(file, "")
        elif opening == "{":
            yield from self._object(file)
        else:
            raise self._broken("it holds neither an object nor a list")
        if self._peek(file):
            raise self._broken("more follows after its end")

    def _object(self, file: BinaryIO) -> Iterator[Element]:
        if self._peek(file) == "}":
            self._place += 1
            return
        while True:
            key = self._value(file, "").value
            if not isinstance(key, str) or self._next(file) != ":":
                raise self._broken("a key is expected")
            self.sections.append(key)
            if self._peek(file) == "[":
                self._place += 1
                yield from self._list(file, key)
            else:
                yield self._value(file, key)
            if self._goes_on(file, "}"):
                continue
            return

    def _list(self, file: BinaryIO, section: str) -> Iterator[Element]:
        if self._peek(file) == "]":
            self._place += 1
            return
        while True:
            yield self._value(file, section)
            if not self._goes_on(file, "]"):
                return

    def _goes_on(self, file: BinaryIO, end: str) -> bool:
        sign = self._next(file)
        if sign not in (",", end):
            raise self._broken(f"',' or '{end}' is expected")
        return sign == ","

    def _value(self, file: BinaryIO, section: str) -> Element:
        self._peek(file)
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except ValueError as error:
                if len(self._text) - self._place > _LONGEST or not self._more(file):
                    raise self._broken(str(error)) from error
                continue
            if self._text[end : end + 1] in ("", *".eE") and self._more(file):
                continue  # a number may go on
            break
        piece = self._text[self._place : end]
        if not piece.isascii():
            value = json.loads(piece.encode("latin-1"))
        start, self._place = self._base + self._place, end
        return Element(section, start, self._base + end, value)

    def _peek(self, file: BinaryIO) -> str:
        """The next character that is no space, not taken; empty at the end."""
        while True:
            while self._place < len(self._text):
                if self._text[self._place] not in _SPACE:
                    return self._text[self._place]
                self._place += 1
            if not self._more(file):
                return ""

    def _next(self, file: BinaryIO) -> str:
        sign = self._peek(file)
        self._place += len(sign)
        return sign

    def _more(self, file: BinaryIO) -> bool:
        """Drop what was taken and read on; twice as much where an element is long."""
        rest = self._text[self._place :]
        new = file.read(max(_CHUNK, len(rest)))
        if not new:
            return False
        self._base += self._place
        self._text, self._place = rest + new.decode("latin-1"), 0
        return True

    def _broken(self, why: str) -> UserError:
        place = self._base + self._place
        return UserError(f"the {self.what} {self.path} is not valid JSON at byte {place}: {why}")
