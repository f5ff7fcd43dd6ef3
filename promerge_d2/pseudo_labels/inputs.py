"""Images of an input, and where the bytes of each are."""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import gzip
import io
import os
import re
import tarfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from promerge_d2.coco.records import spellings
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import IMAGE_SUFFIXES, image_size

TARS = (".tar", ".tar.gz", ".tgz")  # the first is not compressed


class ImageFile(NamedTuple):
    """An image of an input.

    Attributes:
        id: of the image in the label file.
        name: path under the input's root with forward slashes; in a tar, that of the tar and the
            member's name.
        size: bytes; None where no file is there.
        tar: the tar that holds it, a path under the root, or None.
        offset: of its first byte in the tar, decompressed.
    """

    id: int | str
    name: str
    size: int | None
    tar: str | None = None
    offset: int | None = None

    @classmethod
    def at(cls, root: Path, name: str, image_id: int | str = 0) -> ImageFile:
        """Size up a file; labelling says why one cannot be read."""
        try:
            return cls(image_id, name, os.stat(root / name).st_size)
        except (OSError, ValueError):
            return cls(image_id, name, None)

    def under(self, root: Path) -> Path | TarImage:
        """Name what to open, see ``Job``."""
        if self.tar is None or self.offset is None or self.size is None:
            return root / self.name
        return TarImage(root / self.tar, self.name, self.offset, self.size)


@dataclass(frozen=True)
class TarImage:
    """An image inside a tar; see ``ImageFile`` for the attributes.

    In a compressed tar all in front of it is decompressed: once where images come in order.
    """

    tar: Path
    name: str
    offset: int
    size: int

    def open(self) -> io.BytesIO:
        """Return its bytes, as a file that has the image's name.

        Raises:
            OSError: the tar cannot be read.
        """
        is_plain = tar_suffix(self.tar.name) == TARS[0]
        try:
            with open(self.tar, "rb") if is_plain else _compressed(self.tar) as file:
                file.seek(self.offset)
                opened = _Member(file.read(self.size))
        except (EOFError, zlib.error) as error:
            raise OSError(errno.EIO, str(error)) from error
        opened.name = self.name
        return opened


class _Member(io.BytesIO):
    """A file in memory that messages name."""

    name = ""

    def __str__(self) -> str:
        return self.name


_compressed_lock = threading.Lock()
_keep_open = functools.lru_cache(maxsize=2)(gzip.open)  # reading on is no second decompression


@contextlib.contextmanager
def _compressed(path: Path) -> Iterator[gzip.GzipFile]:
    with _compressed_lock:
        yield _keep_open(path)


@dataclass(frozen=True)
class ImageList:
    """Images in a fixed order.

    Attributes:
        root: the folder that the names are relative to.
        files: in their order.
    """

    root: Path
    files: tuple[ImageFile, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the images' names."""
        return tuple(file.name for file in self.files)


def has_suffix(name: str) -> bool:
    """Return whether a file's name is that of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def tar_suffix(name: str) -> str | None:
    """Return which of ``TARS`` a file's name ends with, None if it is no tar."""
    return next((suffix for suffix in TARS if name.lower().endswith(suffix)), None)


def list_tar(path: Path, name: str, left_out: collections.Counter[str]) -> Iterator[ImageFile]:
    """List the images of a tar, ids still missing.

    Args:
        path: the tar.
        name: under the input's root.
        left_out: counts the other files by kind.

    Raises:
        UserError: the tar cannot be read.
    """
    opener = open if tar_suffix(path.name) == TARS[0] else gzip.open
    try:
        with opener(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                inside = member.name.removeprefix("./")
                if not member.isfile():
                    pass
                elif any(part.startswith(".") for part in inside.split("/")):
                    left_out["hidden files"] += 1
                elif not has_suffix(inside):
                    left_out[f"files {Path(inside).suffix.lower()} in tars"] += 1
                else:
                    yield ImageFile(0, f"{name}/{inside}", member.size, name, member.offset_data)
                tar.members = []  # type: ignore[attr-defined] # tarfile keeps them all
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(
            f"cannot read the tar {path}: {error}; it must be whole, and its name end in "
            f"{' or '.join(TARS[1:])} if it is compressed"
        ) from error


def find_image(root: Path, name: str) -> Path | TarImage | None:
    """Find the image that a label file names, however it is spelled; None if it is not there."""
    for spelling in spellings(name):
        if (root / spelling).is_file():
            return root / spelling
        for place in (found.start() for found in re.finditer("/", spelling)):
            tar = spelling[:place]
            if tar_suffix(tar) and (root / tar).is_file():
                file = _tar_members(root / tar, tar).get(spelling)
                if file:
                    return file.under(root)
    return None


def find_size(root: Path, name: str) -> tuple[int, int] | None:
    """Return width and height of an image that a label file names; None if it is not there.

    Raises:
        ImageError: it cannot be read.
    """
    found = find_image(root, name)
    if found is None:
        return None
    return image_size(found.open() if isinstance(found, TarImage) else found)


@functools.lru_cache(maxsize=2)
def _tar_members(path: Path, name: str) -> dict[str, ImageFile]:
    return {file.name: file for file in list_tar(path, name, collections.Counter())}
