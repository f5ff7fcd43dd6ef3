"""A JSON file that is too large to hold, as the elements of its lists, one by one."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from promerge_d2.utils.errors import UserError
from promerge_d2.utils.progress import late_progress

_CHUNK = 1 << 20  # bytes read at once
_LARGE = 50 << 20  # bytes of a file whose reading is shown
_MARK = b"\xef\xbb\xbf"  # UTF-8's byte-order mark, which Windows' editors put in front
_LONGEST = 1 << 26  # bytes of one element; what goes on for longer is broken
_SPACE = re.compile(r"[ \t\n\r]*")
_BORDER = re.compile(r"\}[ \t\n\r]*,[ \t\n\r]*(?=\{)")  # between two objects
_GOES_ON = ("", *".eE")  # what may follow the digits of a number, the end of the text included


class Element(NamedTuple):
    """An element of a list in the file, or a value that is not a list.

    Attributes:
        section: the key of the list; ``""`` where the file itself is a list.
        start: offset of its first byte in the file; -1 without ``spans``.
        end: offset of the byte after its last; -1 without ``spans``.
        value: the parsed JSON.
    """

    section: str
    start: int
    end: int
    value: Any


class JsonStream:
    """Iterate over the elements of the lists of a JSON file, in their order.

    The file is an object of lists (as COCO's) or a list, in UTF-8. Memory holds a piece at a time.

    Args:
        path: the file.
        what: its role, for messages.
        spans: whether byte offsets are wanted; without them, lists of objects go twice as fast.

    Attributes:
        sections: the keys met so far, also of empty lists; ``[""]`` where the file is a list.
        lists: the keys met so far whose values are lists.

    Raises:
        UserError: while iterating: the file cannot be read, is no JSON of that form, or has a key
            twice.
    """

    def __init__(self, path: str | os.PathLike, what: str = "file", spans: bool = True) -> None:
        self.path = path
        self.what = what
        self.spans = spans
        self.sections: list[str] = []
        self.lists: list[str] = []
        # Latin-1: one character a byte, whatever the text is
        self._text = ""
        self._place = 0  # in the text
        self._base = 0  # of the text, in the file
        self._tried = 0  # up to which byte of the file pieces were tried
        self._decoder = json.JSONDecoder()
        self._bar: tqdm | None = None

    def __iter__(self) -> Iterator[Element]:
        try:
            with open(self.path, "rb") as file, self._shown(file):
                yield from self._walk(file)
        except OSError as error:
            raise UserError(f"cannot read the {self.what} {self.path}: {error.strerror}") from error

    @contextlib.contextmanager
    def _shown(self, file: BinaryIO) -> Iterator[None]:
        """Show how far the file is read, if it is large."""
        size = os.fstat(file.fileno()).st_size
        if size < _LARGE:
            yield
            return
        name = os.path.basename(self.path)
        with late_progress(total=size, unit="B", unit_scale=True, desc=str(name)) as self._bar:
            try:
                yield
            finally:
                self._bar = None

    def _walk(self, file: BinaryIO) -> Iterator[Element]:
        self.sections, self.lists = [], []
        self._text, self._place, self._base, self._tried = "", 0, 0, 0
        if file.read(len(_MARK)) == _MARK:
            self._base = len(_MARK)
        else:
            file.seek(0)
        opening = self._next(file)
        if opening == "[":
            self.sections.append("")
            yield from self._list(file, "")
        elif opening == "{":
            yield from self._object(file)
        else:
            more = "; save it as UTF-8" if opening in ("\xff", "\xfe", "\0") else ""
            raise self._broken(f"it holds neither an object nor a list{more}")
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
            if key in self.sections:
                raise self._broken(f"the key {key!r} occurs twice")
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
        self.lists.append(section)
        if self._peek(file) == "]":
            self._place += 1
            return
        while True:
            if not self.spans:
                yield from self._piece(section)
            yield self._value(file, section)
            if self._text.startswith(",", self._place):  # saves calls: most elements end so
                self._place += 1
            elif not self._goes_on(file, "]"):
                return

    def _piece(self, section: str) -> Iterator[Element]:
        """Parse all but the last of the objects that are whole in the text, in one go.

        Where objects hold lists of objects, or a string looks like a border between two, the piece
        is not JSON; then this yields nothing, and elements are parsed one by one.
        """
        stop = self._base + len(self._text)
        if self._tried == stop:
            return
        self._tried = stop
        ends = [border.start() + 1 for border in _BORDER.finditer(self._text, self._place)]
        if not ends:
            return
        piece = f"[{self._text[self._place : ends[-1]]}]"
        try:
            values = json.loads(piece if piece.isascii() else piece.encode("latin-1"))
        except (ValueError, RecursionError):
            return
        self._place = _after_space(self._text, self._text.index(",", ends[-1]) + 1)
        for value in values:
            yield Element(section, -1, -1, value)

    def _goes_on(self, file: BinaryIO, end: str) -> bool:
        sign = self._next(file)
        if sign not in (",", end):
            raise self._broken(f"',' or '{end}' is expected")
        return sign == ","

    def _value(self, file: BinaryIO, section: str) -> Element:
        if not self._text.startswith("{", self._place):
            self._peek(file)
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except RecursionError as error:
                raise self._broken("its lists or objects are nested too deep") from error
            except ValueError as error:
                if len(self._text) - self._place > _LONGEST or not self._more(file):
                    raise self._broken(str(error)) from error
                continue
            if self._text[end : end + 1] in _GOES_ON and self._more(file):
                continue  # a number may go on
            break
        piece = self._text[self._place : end]
        if not piece.isascii():
            try:
                value = json.loads(piece.encode("latin-1"))
            except ValueError as error:
                raise self._broken(f"it is not UTF-8: {error}") from error
        start, self._place = self._base + self._place, end
        if not self.spans:
            return Element(section, -1, -1, value)
        return Element(section, start, self._base + end, value)

    def _peek(self, file: BinaryIO) -> str:
        """Return the next character that is not a space, and stay before it; empty at the end."""
        while True:
            if self._text[self._place : self._place + 1] <= " ":  # space, or the end of the text
                self._place = _after_space(self._text, self._place)
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._more(file):
                return ""

    def _next(self, file: BinaryIO) -> str:
        sign = self._peek(file)
        self._place += len(sign)
        return sign

    def _more(self, file: BinaryIO) -> bool:
        """Drop the parsed text and read on; twice as much where an element is long."""
        rest = self._text[self._place :]
        new = file.read(max(_CHUNK, len(rest)))
        if not new:
            return False
        if self._bar is not None:
            self._bar.update(len(new))
        self._base += self._place
        self._text, self._place = rest + new.decode("latin-1"), 0
        return True

    def _broken(self, why: str) -> UserError:
        place = self._base + self._place
        return UserError(f"the {self.what} {self.path} is not valid JSON at byte {place}: {why}")


def _after_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place
