"""XML: names that it can hold, and files of others read without their tricks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from promerge_d2.utils.errors import UserError

# what XML 1.0 has no way to write
_IMPOSSIBLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text_of(value: str) -> str:
    """Return a name as the content of an element.

    Raises:
        UserError: XML cannot hold it.
    """
    _check(value)
    return escape(value, {"\r": "&#13;"})


def attribute(value: str) -> str:
    """Return a name as an attribute's value, quoted.

    Raises:
        UserError: XML cannot hold it.
    """
    _check(value)
    return quoteattr(value)


def _check(value: str) -> None:
    if found := _IMPOSSIBLE.search(value):
        raise UserError(f"{value!r}: XML cannot hold the character {found[0]!r}; rename the image")


def parse_stream(file: IO[bytes], path: Path) -> Iterator[tuple[str, ElementTree.Element]]:
    """Yield starts and ends of elements, as ``ElementTree.iterparse`` does.

    Raises:
        UserError: it is no XML, or defines entities, which no label file does.
    """
    parser: Any = ElementTree.XMLPullParser(("start", "end"))
    before = b""
    try:
        while chunk := file.read(1 << 16):
            _check_type(before + chunk, path)
            before = chunk[-9:]
            parser.feed(chunk)
            yield from parser.read_events()
        parser.close()
        yield from parser.read_events()
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is not valid XML: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def parse_file(path: Path) -> ElementTree.Element:
    """Read a small file whole; refusals as those of ``parse_stream``."""
    try:
        content = path.read_bytes()
        _check_type(content, path)
        return ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is not valid XML: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _check_type(content: bytes, path: Path) -> None:
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise UserError(f"{path}: it has a document type of its own; no label file does")
