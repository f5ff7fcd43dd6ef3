"""Read and write files; a written file is either whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import reprlib
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from promerge_d2.utils.errors import UserError

_LONGEST = 255, 2000  # bytes of one name and of a path that every system takes


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends well.

    Parent folders are made. After an exception the temporary file is removed and ``path`` is as
    it was.

    Raises:
        UserError: the folder cannot be made or written.
    """
    path = Path(path)
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose a folder that you may write to"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: str | os.PathLike) -> Path:
    """Make a folder with its parents and return its path.

    Raises:
        UserError: it cannot be made, with the reason.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder}: {error.strerror}; choose another place"
        ) from error
    return Path(folder)


def check_writable(path: str | os.PathLike) -> None:
    """Refuse a place that a later ``atomic_path`` could not write, before work starts.

    Raises:
        UserError: ``path`` is a folder, or its folder cannot be made or written.
    """
    if Path(path).is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file in it")
    folder = make_folder(Path(path).parent)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose a folder that you may write to"
        ) from error


def write_json(path: str | os.PathLike, obj: Any, indent: int | None = None) -> None:
    """Write ``obj`` as UTF-8 JSON, atomically; NaN and infinities are refused (``ValueError``)."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(obj, file, indent=indent, allow_nan=False)
        file.write("\n")


def read_json(path: str | os.PathLike, what: str = "file") -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        what: its role, for the message ("ground truth", "pseudo-labels", ...).

    Returns:
        What ``json.load`` makes of it.

    Raises:
        UserError: the file is missing, unreadable, empty or not JSON.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:  # a byte-order mark is no obstacle
            return json.load(file)
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"the {what} {path} is not valid JSON: {error}") from error


def sha256_of(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def path_inside(root: Path, file_name: str | None, where: str) -> Path:
    """Return the path of an image under a folder.

    Args:
        root: the folder.
        file_name: as a COCO file has it.
        where: names the record, for messages.

    Raises:
        UserError: there is no name, it is absolute or climbs out with ``..``, or no system could
            have it; such a file is never read.
    """
    name = PurePosixPath((file_name or "").replace("\\", "/"))
    if not name.parts:
        raise UserError(f"{where}: it has no file name")
    if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
        raise UserError(
            f"{where}: the file name {file_name!r} leads out of the image folder; names must be "
            "relative paths without '..'"
        )
    one, whole = (
        max(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        for texts in (name.parts, [str(name)])
    )
    if "\0" in str(name) or one > _LONGEST[0] or whole > _LONGEST[1]:
        raise UserError(f"{where}: {reprlib.repr(file_name)} cannot be a file name")
    return root / name
