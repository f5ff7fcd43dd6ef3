"""What a user may name as input: a folder, a glob, a text list, or one image."""

from __future__ import annotations

import glob
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import IMAGE_SUFFIXES


@dataclass(frozen=True)
class ImageList:
    """Images in a fixed order.

    Attributes:
        root: the folder that the names are relative to.
        names: paths under ``root`` with forward slashes, sorted.
    """

    root: Path
    names: tuple[str, ...]

    def path(self, name: str) -> Path:
        """The file behind a name."""
        return self.root / name


def list_images(source: str | os.PathLike) -> ImageList:
    """List the images that ``source`` names.

    Args:
        source: a folder (searched at any depth for image suffixes), a glob (``**`` goes through
            folders), a ``.txt`` file with one path a line (relative to the list's folder; blank
            lines and lines with ``#`` in front are left out), or one image. Listed files need
            not exist: labelling names those that cannot be read.

    Returns:
        The images, sorted by name.

    Raises:
        UserError: nothing is there, no image is, one is named twice, or a list is no text.
    """
    path = Path(source)
    if path.is_dir():
        root = path
        found = [p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        what = f"the folder {path} holds no image ({', '.join(IMAGE_SUFFIXES)})"
    elif path.suffix.lower() == ".txt" and path.is_file():
        lines = (line.strip() for line in _read_list(path).splitlines())
        found = [path.parent / line for line in lines if line and not line.startswith("#")]
        root = _common_root(found)
        what = f"the list {path} names no image"
    elif path.is_file():
        root, found, what = path.parent, [path], ""
    elif glob.has_magic(str(source)):
        found = [Path(p) for p in glob.glob(str(source), recursive=True)]
        found = [p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        root = _common_root(found)
        what = f"the glob {source} matches no image; put it in quotes so that it arrives whole"
    else:
        raise UserError(f"the input {source} does not exist")
    if not found:
        raise UserError(what)
    names = sorted(Path(os.path.relpath(p, root)).as_posix() for p in found)
    for first, second in itertools.pairwise(names):
        if first == second:
            raise UserError(f"the input {source} names {first} twice; list each image once")
    return ImageList(root, tuple(names))


def _read_list(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows' editors put a mark in front
    except UnicodeDecodeError as error:
        raise UserError(f"the list {path} is not UTF-8 text: {error}; save it as UTF-8") from error


def _common_root(paths: list[Path]) -> Path:
    if not paths:
        return Path(".")
    return Path(os.path.commonpath([os.path.abspath(p.parent) for p in paths]))
