"""The store: what is known of each image, a checked line each, in files that only grow.

Layout of ``OUT.json.parts``::

    manifest.jsonl              which images, and how they are labelled
    shard-0-of-1/lock           held by the process that is at work on the shard
    shard-0-of-1/0001.records   a line an image; also .failures (tracebacks) and .times (seconds)
    shard-0-of-1/0002.records.open   being written, or left by a process that was killed
    shard-0-of-1/status.json    how far the work is

A line is ``checksum run place JSON``: the CRC-32 of the rest as eight hexadecimal digits, the
manifest's ``run``, the image's place in the manifest, and the content. Every run begins files of
its own, numbered on over all shards; of two lines about an image the one in the later file counts,
whatever shard it is in: work that was begun in three shards may go on in seven.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from promerge_d2.pseudo_labels.manifest import Manifest
from promerge_d2.utils.errors import EXIT_NOT_FINISHED, UserError
from promerge_d2.utils.files import make_folder

logger = logging.getLogger(__name__)

KINDS = ("records", "failures", "times")
_OPEN_FILES = 256  # at once, while reading
OPEN = ".open"  # at the end of a file's name while it is written


class NotFinished(UserError):
    """Work that stopped before its end; what is done is kept, and the same command goes on."""

    exit_code = EXIT_NOT_FINISHED


@contextlib.contextmanager
def guard_write(path: str | os.PathLike) -> Iterator[None]:
    """Turn an error of the disk into a message that what is done is kept.

    Args:
        path: what is written in the block.

    Raises:
        NotFinished: instead of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise NotFinished(
            f"cannot write {path}: {error.strerror}; nothing that was finished is lost: put that "
            "right and run the same command again"
        ) from error


def parts_of(output: str | os.PathLike) -> Path:
    """Return the folder of an output's store."""
    return Path(f"{os.fspath(output)}.parts")


class Store:
    """A store with a manifest.

    Args:
        folder: ``OUT.json.parts``.

    Attributes:
        manifest: what belongs into it.

    Raises:
        UserError: there is no store, or its manifest is damaged.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"there is no {self.folder}; label images first")
        self.manifest = Manifest(self.folder / "manifest.jsonl")

    def shard(self, shard: int, shards: int) -> Path:
        """Return the folder of a shard."""
        return self.folder / f"shard-{shard}-of-{shards}"

    def index(self, kind: str) -> Index:
        """Go through all files of a kind, whole lines and damaged ones.

        Args:
            kind: one of ``KINDS``.

        Raises:
            UserError: a file cannot be read, or belongs to another store.
        """
        files = [
            *self.folder.glob(f"shard-*/*.{kind}"),
            *self.folder.glob(f"shard-*/*.{kind}{OPEN}"),
        ]
        return Index(sorted(files, key=lambda path: (path.name[:4], path)), self.manifest)

    def failures(self, shard: int = 0, shards: int = 1) -> list[dict]:
        """Return the last failure of every image of a shard that has no record.

        Args:
            shard: from 0; by default all images.
            shards: how many there are.
        """
        with self.index("records") as records, self.index("failures") as failures:
            failed = np.flatnonzero(failures.found & ~records.found)
            return [failures[place] for place in failed[failed % shards == shard].tolist()]

    def writer(self, folder: Path) -> Writer:
        """Begin new files in a shard's folder, whose lock must be held."""
        numbers = [
            int(found[1])
            for path in self.folder.glob("shard-*/*")
            if (found := re.match(r"(\d{4})\.", path.name))
        ]
        return Writer(folder / f"{max(numbers, default=0) + 1:04d}", self.manifest.run)


class Index(contextlib.AbstractContextManager):
    """Find the last line about each image; memory holds 16 bytes an image.

    Args:
        files: to go through, oldest first.
        manifest: what they belong to.

    Attributes:
        damaged: a message for each line that cannot be read, other than a line that a killed
            process left half written.
    """

    def __init__(self, files: list[Path], manifest: Manifest) -> None:
        self.files = files
        self.damaged: list[str] = []
        self._file = np.full(manifest.count, -1, np.int32)
        self._start = np.zeros(manifest.count, np.int64)
        self._length = np.zeros(manifest.count, np.int32)
        self._opened: dict[int, BinaryIO] = {}
        for number, path in enumerate(files):
            self._read(number, path, manifest)

    def _read(self, number: int, path: Path, manifest: Manifest) -> None:
        run = manifest.run.encode()
        start = 0
        if not path.exists():  # its process has closed it meanwhile
            self.files[number] = path = path.with_name(path.name.removesuffix(OPEN))
        try:
            with open(path, "rb") as file:
                for count, line in enumerate(file, start=1):
                    if (parsed := _parse(line)) is None:
                        if line.endswith(b"\n") or not path.name.endswith(OPEN):
                            self.damaged.append(f"{path}: line {count} is damaged")
                    elif parsed[0] != run or parsed[1] >= manifest.count:
                        raise UserError(
                            f"{path} belongs to another output than {manifest.path}; take it away"
                        )
                    else:
                        place = parsed[1]
                        self._file[place] = number
                        self._start[place] = start
                        self._length[place] = len(line)
                    start += len(line)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error

    @property
    def found(self) -> np.ndarray:
        """(count,) bool: which places of the manifest have a line."""
        return self._file >= 0

    def __getitem__(self, place: int) -> dict:
        """Return what the line about an image says.

        Raises:
            UserError: the file is not as it was.
        """
        number = int(self._file[place])
        if number not in self._opened:
            if len(self._opened) == _OPEN_FILES:
                self.close()
            self._opened[number] = open(self.files[number], "rb", buffering=0)  # noqa: SIM115
        line = os.pread(
            self._opened[number].fileno(), int(self._length[place]), int(self._start[place])
        )
        parsed = _parse(line)
        if parsed is None or parsed[1] != place:
            raise UserError(f"{self.files[number]} was changed while it was read; start again")
        return json.loads(parsed[2])

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files that were read; the next look-up opens them again."""
        for file in self._opened.values():
            file.close()
        self._opened.clear()


def _parse(line: bytes) -> tuple[bytes, int, bytes] | None:
    """Split a line into run, place and JSON; None if it is not whole."""
    checksum, _, rest = line.partition(b" ")
    if not rest.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(rest):
        return None
    run, place, content = rest.split(b" ", 2)
    return run, int(place), content


class Writer:
    """Appends lines to new files, one write a line, so that a kill costs the last one at most.

    Args:
        stem: path of the files without ``.KIND``.
        run: of the manifest.
    """

    def __init__(self, stem: Path, run: str) -> None:
        self._stem = stem
        self._run = run
        self._files: dict[str, int] = {}

    def append(self, kind: str, place: int, content: Any) -> None:
        """Add a line about an image.

        Args:
            kind: one of ``KINDS``.
            place: of the image in the manifest.
            content: JSON.

        Raises:
            NotFinished: it cannot be written; all lines before it are safe.
        """
        rest = f"{self._run} {place} {json.dumps(content, allow_nan=False)}\n".encode()
        line = b"%08x %s" % (zlib.crc32(rest), rest)
        with guard_write(self._name(kind)):
            if kind not in self._files:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
                self._files[kind] = os.open(self._name(kind), flags, 0o666)
            file = self._files[kind]
            before = os.fstat(file).st_size
            try:
                if (written := os.write(file, line)) < len(line):
                    os.write(file, line[written:])  # says why
                    raise OSError(errno.EIO, "a line was written in part only")
            except OSError:
                os.ftruncate(file, before)
                raise

    def sync(self) -> None:
        """Flush what was written to the disk, so that it survives a power cut."""
        for kind, file in self._files.items():
            with guard_write(self._name(kind)):
                os.fsync(file)

    def close(self) -> None:
        """Give the files their final names."""
        try:
            self.sync()
            for kind in self._files:
                with guard_write(self._name(kind)):
                    os.rename(self._name(kind), self._name(kind).removesuffix(OPEN))
        finally:
            for file in self._files.values():
                os.close(file)
            self._files = {}

    def _name(self, kind: str) -> str:
        return f"{self._stem}.{kind}{OPEN}"


@contextlib.contextmanager
def locked(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends.

    Args:
        path: the lock's file; it stays.
        what: for the message.
        wait: until it is free, instead of refusing.

    Raises:
        UserError: another process holds it, or the file system has no locks.
        NotFinished: the file cannot be written.
    """
    make_folder(path.parent)
    with guard_write(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            # POSIX locks: they work over NFS, and no child process inherits them
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError) as error:
            holder = os.pread(file, 200, 0).decode("utf-8", "replace").strip() or "another process"
            raise UserError(f"{holder} is at work on {what}; wait for it or stop it") from error
        except OSError as error:
            raise UserError(
                f"{path} cannot be locked: {error.strerror}; use another disk"
            ) from error
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {platform.node()}".encode(), 0)
        yield
    finally:
        os.close(file)
