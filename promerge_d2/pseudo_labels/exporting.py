"""Label files of ours in the formats of other tools."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from promerge_d2.coco.fields import EMPTY, NO_MASK, Tally
from promerge_d2.coco.index import CocoIndex
from promerge_d2.pseudo_labels.formats import FORMATS
from promerge_d2.pseudo_labels.formats.base import (
    Changes,
    LabelledImage,
    LabelledMask,
    Order,
    checked_name,
)
from promerge_d2.pseudo_labels.inputs import TarImage, find_image
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import make_folder

IMAGES = "link", "copy", "none"
MISSING = "photographs that are not there"
CROWD = "crowds (no format but COCO has them)"


@dataclass
class Exported:
    """What became of a label file.

    Attributes:
        images: images written.
        masks: masks written.
        photographs: photographs linked or copied.
        changes: what the format could not keep.
        left_out: what was left out, by reason.
    """

    images: int = 0
    masks: int = 0
    photographs: int = 0
    changes: Changes = field(default_factory=Changes)
    left_out: Tally = field(default_factory=Tally)


def export_labels(
    labels: str | os.PathLike,
    output: str | os.PathLike,
    to: str,
    images: str = "none",
    image_root: str | os.PathLike | None = None,
    valid_share: float = 0.1,
    bar: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Exported:
    """Write a label file in another format, image by image.

    The folder is there when all is written, and not before: a process that is killed leaves no more
    than a hidden folder beside it, ``.NAME.*.part``.

    Args:
        labels: COCO JSON.
        output: folder to write; it must not exist, or be empty.
        to: one of ``FORMATS``.
        images: what happens to the photographs: "link" (symbolic links; those in tars are copied),
            "copy" or "none".
        image_root: folder that the file's image names are relative to; needed for "link" and
            "copy".
        valid_share: part of the images that is for validation, for formats that tell them apart:
            evenly spaced ones.
        bar: what the numbers of the images go through, such as a progress bar.

    Returns:
        What was done. Objects without a mask or a pixel, and crowds, are left out and counted.

    Raises:
        UserError: the label file is broken, a name cannot be used, or the folder is there.
        RecordError: a record is refused; the message names it.
    """
    if images != "none" and (image_root is None or not Path(image_root).is_dir()):
        raise UserError(
            f"--images {images} needs the photographs' folder, and --image-root is {image_root}"
        )
    if not 0 <= valid_share < 1:
        raise UserError(f"--valid-share is {valid_share}; it must be from 0 to below 1")
    index = CocoIndex(labels)
    found = Exported()
    root = Path(image_root or ".")
    with _whole_folder(Path(output)) as folder:
        order = Order(folder, len(index), valid_share, found.changes)
        with FORMATS[to].write(order) as add:
            for place in bar(range(len(index))):
                image = _image(index, place, found.left_out)
                belongs = add(image)
                found.images += 1
                found.masks += len(image.masks)
                if images != "none":
                    _place(image.name, root, folder / belongs, images == "copy", found)
    return found


def _image(index: CocoIndex, place: int, left_out: Tally) -> LabelledImage:
    info, items = index.read(place)
    masks = []
    for item in items:
        if item.rle is None:
            left_out.note(NO_MASK, item.where)
        elif item.empty:
            left_out.note(EMPTY, item.where)
        elif item.crowd:
            left_out.note(CROWD, item.where)
        else:
            masks.append(LabelledMask(item.rle, item.score))
    height, width = info.size
    return LabelledImage(checked_name(info.file_name, index.path), width, height, masks)


def _place(name: str, root: Path, target: Path, copied: bool, found: Exported) -> None:
    """Link or copy a photograph to where the format wants it."""
    photograph = find_image(root, name)
    if photograph is None:
        found.left_out.note(MISSING, name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if isinstance(photograph, TarImage):
            with open(target, "xb") as file:
                file.write(photograph.open().read())
        elif copied:
            with open(target, "xb") as file, open(photograph, "rb") as content:
                shutil.copyfileobj(content, file, 1 << 20)
        else:
            target.symlink_to(photograph.resolve())
    except FileExistsError as error:
        raise UserError(f"{name}: two images of the label file have this name") from error
    except OSError as error:
        raise UserError(f"cannot write the photograph {name}: {error.strerror}") from error
    found.photographs += 1


@contextlib.contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """Yield a hidden folder that becomes ``output`` when the block ends well."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} is there already; choose another --output, or remove it")
    parent = make_folder(output.absolute().parent)
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".part", dir=parent))
    except OSError as error:
        raise UserError(
            f"cannot write {output}: {error.strerror}; choose a folder that you may write to"
        ) from error
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o777 & ~umask)  # mkdtemp makes it private
        os.rename(part, output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
