"""What a user may name as input, and where the bytes of each image are."""

from __future__ import annotations

import functools
import glob
import io
import itertools
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from promerge_d2.coco.read import CocoSource, read_images
from promerge_d2.coco.records import slashes, spellings
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import IMAGE_SUFFIXES, image_size


class ImageFile(NamedTuple):
    """An image of an input.

    Attributes:
        id: of the image in the label file.
        name: path under the input's root with forward slashes; in a tar, that of the tar and the
            member's name.
        size: bytes; None where no file is there.
        tar: the tar that holds it, a path under the root, or None.
        offset: of its first byte in the tar.
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
        if self.tar is None:
            return root / self.name
        return TarImage(root / self.tar, self.name, self.offset, self.size)


@dataclass(frozen=True)
class TarImage:
    """An image inside an uncompressed tar; see ``ImageFile`` for the attributes."""

    tar: Path
    name: str
    offset: int
    size: int

    def open(self) -> io.BytesIO:
        """Its bytes, as a file that has the image's name.

        Raises:
            OSError: the tar cannot be read.
        """
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            opened = _Member(file.read(self.size))
        opened.name = self.name
        return opened


class _Member(io.BytesIO):
    """A file in memory that messages name."""

    name = ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ImageList:
    """Images in a fixed order.

    Attributes:
        root: the folder that the names are relative to.
        files: sorted by name.
    """

    root: Path
    files: tuple[ImageFile, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names."""
        return tuple(file.name for file in self.files)

    def path(self, name: str) -> Path:
        """The file behind a name."""
        return self.root / name


def list_images(
    source: str | os.PathLike, image_root: str | os.PathLike | None = None
) -> ImageList:
    """List the images that ``source`` names, and their sizes.

    A tar (WebDataset's shards) counts as a folder of the images in it, wherever it is met.

    Args:
        source: a folder (searched at any depth for image suffixes and tars), a glob (``**`` goes
            through folders), a ``.txt`` file with one path a line (blank lines and lines with
            ``#`` in front are left out), a COCO ``.json`` (its ids are kept), a tar, or one
            image. Listed files need not exist: labelling names those that cannot be read.
        image_root: the folder that the names in a ``.txt`` or ``.json`` start from; None takes
            the folder of that file.

    Returns:
        The images, sorted by name; ids are places from 1 unless the input has its own.

    Raises:
        UserError: nothing is there, no image is, one is named twice, or a list or tar cannot be
            read.
    """
    path = Path(source)
    kind = path.suffix.lower()
    ids: dict[str, int] = {}
    if path.is_dir():
        root, found = path, list(_walk(path))
        what = f"the folder {path} holds no image ({', '.join(IMAGE_SUFFIXES)}) and no .tar"
    elif kind in (".txt", ".json") and path.is_file():
        base = path.parent if image_root is None else Path(image_root)
        if kind == ".txt":
            lines = (line.strip() for line in _read_list(path).splitlines())
            found = [base / line for line in lines if line and not line.startswith("#")]
            root = _common_root(found)
        else:
            root, ids = base, _read_coco(path)
            found = [base / name for name in ids]
        what = f"the list {path} names no image"
    elif path.is_file():
        root, found, what = path.parent, [path], f"the tar {path} holds no image"
    elif glob.has_magic(str(source)):
        found = [Path(p) for p in glob.iglob(str(source), recursive=True)]
        found = [p for p in found if p.suffix.lower() in (*IMAGE_SUFFIXES, ".tar") and p.is_file()]
        root = _common_root(found)
        what = f"the glob {source} matches no image; put it in quotes so that it arrives whole"
    else:
        raise UserError(f"the input {source} does not exist")
    if image_root is not None and kind not in (".txt", ".json"):
        raise UserError("an image root belongs to a .txt or .json input; other inputs are the root")
    files = sorted(_expand(found, root), key=lambda file: file.name)
    if not files:
        raise UserError(what)
    for first, second in itertools.pairwise(files):
        if first.name == second.name:
            raise UserError(f"the input {source} names {first.name} twice; list each image once")
    if kind in (".txt", ".json") and all(file.size is None for file in files):
        raise UserError(
            f"of the images that {source} names, none is there, such as {root / files[0].name}; "
            "say with --image-root where they are"
        )
    return ImageList(
        root,
        tuple(
            file._replace(id=ids.get(file.name, place)) for place, file in enumerate(files, start=1)
        ),
    )


def _walk(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if os.path.splitext(name)[1].lower() in (*IMAGE_SUFFIXES, ".tar"):
                yield Path(parent, name)


def _expand(found: list[Path], root: Path) -> Iterator[ImageFile]:
    """Size up the files and list the tars, ids still missing."""
    for path in found:
        name = Path(os.path.relpath(path, root)).as_posix()
        if path.suffix.lower() == ".tar":
            yield from _list_tar(path, name)
        else:
            yield ImageFile.at(root, name)


def _list_tar(path: Path, name: str) -> Iterator[ImageFile]:
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile() and member.name.lower().endswith(IMAGE_SUFFIXES):
                    inside = member.name.removeprefix("./")
                    yield ImageFile(0, f"{name}/{inside}", member.size, name, member.offset_data)
                tar.members = []  # tarfile keeps them all
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"cannot read the tar {path}: {error}; shards must be whole and uncompressed"
        ) from error


def _read_coco(path: Path) -> dict[str, int]:
    """Return the ids of the images that a COCO file lists, by name."""
    source = CocoSource(path, "input")
    images = read_images(source.records("images"), source.name, need_size=False, need_name=True)
    ids: dict[str, int] = {}
    for image in images.values():
        name = slashes(image.file_name)
        if not isinstance(image.id, int):
            raise UserError(f"the input {path}: the image {image} has no integer id")
        if name in ids:
            raise UserError(f"the input {path} names {name} twice; list each image once")
        ids[name] = image.id
    return ids


def _read_list(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows' editors put a mark in front
    except UnicodeDecodeError as error:
        raise UserError(f"the list {path} is not UTF-8 text: {error}; save it as UTF-8") from error


def _common_root(paths: list[Path]) -> Path:
    if not paths:
        return Path(".")
    return Path(os.path.commonpath([os.path.abspath(p.parent) for p in paths]))


def find_image(root: Path, name: str) -> Path | TarImage | None:
    """Find the image that a label file names, however it is spelled; None if it is not there."""
    for spelling in spellings(name):
        if (root / spelling).is_file():
            return root / spelling
        tar, dot, _ = spelling.partition(".tar/")
        if dot and (root / f"{tar}.tar").is_file():
            file = _tar_members(root / f"{tar}.tar", f"{tar}.tar").get(spelling)
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
    return {file.name: file for file in _list_tar(path, name)}
