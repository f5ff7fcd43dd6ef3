"""The manifest: which images an output is made of, and how; fixed before work starts.

``manifest.jsonl`` holds on its first line the SHA-256 of all that follows, on its second the
header (``info`` of the label file, the images' root and number), then a line an image:
``[id, name, bytes]``, in a tar ``[id, name, bytes, tar, offset]``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from promerge_d2.pseudo_labels.inputs import ImageFile, ImageList
from promerge_d2.utils.differences import differences
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path

logger = logging.getLogger(__name__)


class Manifest:
    """A manifest on disk.

    Args:
        path: its file.

    Attributes:
        info: what the masks follow from besides the images, see ``label.describe``.
        root: the images' folder when the output was begun.
        count: number of images.
        run: 12 hexadecimal digits that each record of the output carries.

    Raises:
        UserError: it is not there, or damaged.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                wanted = file.readline().strip().decode("ascii", "replace")
                header = file.readline()
                entries, digest = hashlib.sha256(), hashlib.sha256(header)
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
                    entries.update(chunk)
        except OSError as error:
            raise UserError(f"cannot read the manifest {path}: {error.strerror}") from error
        if digest.hexdigest() != wanted:
            raise UserError(
                f"the manifest {path} is damaged; delete it (only it): the command that began the "
                "output writes it again, and what is labelled stays"
            )
        content = json.loads(header)
        self.info: dict = content["info"]
        self.root: str = content["root"]
        self.count: int = content["count"]
        self.run = _fingerprint(self.info, entries.hexdigest())

    def entries(self) -> Iterator[ImageFile]:
        """The images in order."""
        with open(self.path, "rb") as file:
            for line in islice(file, 2, None):  # after hash and header
                yield ImageFile(*json.loads(line))


def write_manifest(path: str | os.PathLike, images: ImageList, info: dict) -> None:
    """Write a manifest, atomically."""
    header = {"root": str(images.root.resolve()), "count": len(images.files), "info": info}
    lines = [json.dumps(header) + "\n", *map(_line, images.files)]
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
    with atomic_path(path) as part, open(part, "w", encoding="ascii") as file:
        file.write(digest.hexdigest() + "\n")
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def check_manifest(manifest: Manifest, images: ImageList, info: dict) -> None:
    """Refuse to go on with other settings or another input; tell of files that came or went.

    Raises:
        UserError: with the difference.
    """
    changed = [
        f"{name} was {json.dumps(before)}, is now {json.dumps(now)}"
        for name, before, now in differences(manifest.info, json.loads(json.dumps(info)))
    ]
    if changed:
        raise UserError(
            f"{manifest.path.parent} was begun otherwise: {'; '.join(changed)}; go on with what it "
            "was begun with, name another output, or delete that folder"
        )
    entries = hashlib.sha256()
    for file in images.files:
        entries.update(_line(file).encode())
    if _fingerprint(info, entries.hexdigest()) == manifest.run:
        return
    before = {file.name: file[1:] for file in manifest.entries()}
    now = {file.name: file[1:] for file in images.files}
    kinds = {
        "new": [name for name in now if name not in before],
        "gone": [name for name in before if name not in now],
        "changed": [name for name in now if name in before and now[name] != before[name]],
    }
    told = ", ".join(f"{len(n)} {kind} (such as {n[0]})" for kind, n in kinds.items() if n)
    told = told or "other ids"
    if manifest.root != str(images.root.resolve()):
        raise UserError(
            f"{manifest.path.parent} was begun with other images: {told}; go on with the same "
            "input, name another output, or delete that folder"
        )
    logger.warning(
        "the input has changed since %s was begun: %s; its list stays as it was: new files are "
        "left out, those gone or changed fail unless they are done",
        manifest.path.parent,
        told,
    )


def _line(file: ImageFile) -> str:
    return json.dumps(file if file.tar else file[:3]) + "\n"


def _fingerprint(info: dict, entries: str) -> str:
    text = json.dumps(info, sort_keys=True) + entries
    return hashlib.sha256(text.encode()).hexdigest()[:12]
