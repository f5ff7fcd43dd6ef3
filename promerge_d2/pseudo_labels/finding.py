"""Which images a user means: folders, globs, lists, COCO files, tars; and what is left out."""

from __future__ import annotations

import collections
import glob
import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from promerge_d2.coco.read import CocoSource, read_images
from promerge_d2.coco.records import ImageId, locate, slashes
from promerge_d2.pseudo_labels.inputs import ImageFile, ImageList, has_suffix, list_tar, tar_suffix
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import IMAGE_SUFFIXES
from promerge_d2.visualization.overlay import is_drawing

logger = logging.getLogger(__name__)

OUTPUT_SUFFIX = ".promerge"  # of the folder that labels of an input go to by default

LeftOut = collections.Counter[str]  # number of files by kind


def list_images(
    source: str | os.PathLike, image_root: str | os.PathLike | None = None
) -> ImageList:
    """List the images that ``source`` names, and their sizes.

    A tar (WebDataset's shards) counts as a folder of the images in it, wherever it is met. Of
    folders, globs and tars, only images are taken: files with an image's suffix, and files without
    a suffix whose content is an image. Hidden files and folders (a dot in front), folders
    ``*.promerge`` and pictures that promerge_d2 drew are left out. What is left out is logged by
    kind.

    Args:
        source: a folder (searched at any depth, links to folders included, each folder once), a
            glob (``**`` goes through folders; brackets that match nothing stand for themselves), a
            ``.txt`` file with one path a line (blank lines are left out, and lines with ``#`` in
            front that name no file), a COCO ``.json`` (its ids are kept), a tar, or one image.
            Listed files need not exist: labelling names those that cannot be read.
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
    ids: dict[str, ImageId] = {}
    left_out: LeftOut = collections.Counter()
    if path.is_dir():
        root, found = path, list(_walk(path, left_out))
        what = f"the folder {path} holds no image ({', '.join(IMAGE_SUFFIXES)}) and no tar"
    elif kind in (".txt", ".json") and path.is_file():
        base = path.parent if image_root is None else Path(image_root)
        if kind == ".txt":
            found = [base / line for line in _read_list(path, base)]
            root = _common_root(found)
        else:
            root, ids = base, _read_coco(path, base)
            found = [base / name for name in ids]
        what = f"the list {path} names no image"
    elif path.is_file():
        root, found, what = path.parent, [path], f"the tar {path} holds no image"
    elif glob.has_magic(str(source)):
        paths = glob.glob(str(source), recursive=True)
        if not paths:  # '[2024] trip/*.jpg'
            paths = glob.glob(str(source).replace("[", "[[]"), recursive=True)
        found = [each for each in _unlooped(paths) if each.is_file() and _is_image(each, left_out)]
        root = _common_root(found)
        what = f"the glob {source} matches no image"
    else:
        raise UserError(f"the input {source} does not exist")
    if image_root is not None and kind not in (".txt", ".json"):
        raise UserError("an image root belongs to a .txt or .json input; other inputs are the root")
    files = sorted(_expand(found, root, left_out), key=lambda file: file.name)
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())
        logger.warning("left out of %s: %s", source, kinds)
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


def _walk(root: Path, left_out: LeftOut) -> Iterator[Path]:
    """Yield the images and tars of a folder; links are followed last, to folders not seen yet."""
    seen: set[tuple[int, int]] = set()
    folders = collections.deque([root])
    links: list[Path] = []
    while folders or links:
        folder = folders.popleft() if folders else links.pop(0)
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            left_out["links to folders that are searched already"] += 1
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = Path(folder, entry.name)
                if entry.name.startswith("."):
                    left_out["hidden folders" if entry.is_dir() else "hidden files"] += 1
                elif entry.is_dir() and entry.name.endswith(OUTPUT_SUFFIX):
                    left_out[f"folders {OUTPUT_SUFFIX}"] += 1
                elif entry.is_dir():
                    (links if entry.is_symlink() else folders).append(path)
                elif _is_image(path, left_out):
                    yield path


def _unlooped(paths: list[str]) -> Iterator[Path]:
    """Yield the files of a glob; what links to folders show again is left out."""
    seen: set[str] = set()
    real = {
        path: os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        for path in paths
    }
    for path in sorted(paths, key=lambda path: (os.path.abspath(path) != real[path], path)):
        if real[path] not in seen:
            seen.add(real[path])
            yield Path(path)


def _is_image(path: Path, left_out: LeftOut) -> bool:
    """Return whether a file is an image or a tar to label; else count it by kind."""
    suffix = path.suffix.lower()
    if has_suffix(path.name) or tar_suffix(path.name):
        if suffix == ".png" and is_drawing(path):
            left_out["pictures that promerge_d2 drew"] += 1
            return False
        return True
    if not suffix:
        try:
            with Image.open(path):
                return True
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            pass  # PIL reports what is no image by any of these
    left_out[f"files {suffix}" if suffix else "files without suffix that are no image"] += 1
    return False


def _expand(found: list[Path], root: Path, left_out: LeftOut) -> Iterator[ImageFile]:
    """Size up the files and list the tars, ids still missing."""
    for path in found:
        name = Path(os.path.relpath(path, root)).as_posix()
        if tar_suffix(path.name):
            yield from list_tar(path, name, left_out)
        else:
            yield ImageFile.at(root, name)


def _read_coco(path: Path, base: Path) -> dict[str, ImageId]:
    """Return the ids of the images that a COCO file lists, by name as it is spelled on disk."""
    source = CocoSource(path, "input")
    images = read_images(source.records("images"), source.name, need_size=False, need_name=True)
    ids: dict[str, ImageId] = {}
    for image in images.values():
        there = locate(base, image.name)
        name = os.path.relpath(there, base) if os.path.exists(there) else slashes(image.name)
        if name in ids:
            raise UserError(f"the input {path} names {name} twice; list each image once")
        ids[name] = image.id
    return ids


def _read_list(path: Path, base: Path) -> Iterator[str]:
    """Yield the lines of a list that name a file."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors put a mark in front
    except UnicodeDecodeError as error:
        raise UserError(f"the list {path} is not UTF-8 text: {error}; save it as UTF-8") from error
    for line in map(str.strip, text.splitlines()):
        if line and (not line.startswith("#") or (base / line).is_file()):
            yield line


def _common_root(paths: list[Path]) -> Path:
    if not paths:
        return Path(".")
    return Path(os.path.commonpath([os.path.abspath(p.parent) for p in paths]))
