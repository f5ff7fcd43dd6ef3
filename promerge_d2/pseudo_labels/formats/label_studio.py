"""Label Studio: a JSON list of tasks, masks as brush strokes, scores as those of predictions.

    tasks.json         to import: a task an image, its masks one prediction
    label_config.xml   the project's labelling interface
    images/NAME        the photographs, for local storage

The links of the tasks, ``/data/local-files/?d=images/NAME``, are right where Label Studio runs with
``LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true`` and ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`` set
to the folder. A task also says the image's name and size, so that they come back.

Of tasks exported from Label Studio, the annotations of people are read where there are any, else
the predictions. Polygons are in per cent of the image and drawn as COCO's.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import numpy as np
from pycocotools import mask as mask_api

from promerge_d2.coco.json_stream import JsonStream
from promerge_d2.coco.records import RecordError
from promerge_d2.coco.rle import OTHER_SIZE, UNREADABLE
from promerge_d2.pseudo_labels.formats.base import (
    BROKEN,
    LABEL,
    UNKNOWN_KIND,
    Add,
    Format,
    LabelledImage,
    LabelledMask,
    Order,
    Source,
    checked_name,
    encode,
    from_polygons,
    run_lengths,
    score_of,
    side,
)
from promerge_d2.utils.errors import UserError
from promerge_d2.version import __version__

_CONFIG = f"""<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="masks" toName="image"><Label value="{LABEL}"/></BrushLabels>
</View>
"""
_LINK = "/data/local-files/?d="

# A brush mask is RGBA, row by row, as a stream of bits: the number of values (32 bits), the bits of
# a value less one (5), four sizes of run lengths less one (4 each); then runs: a 1, which of the
# sizes (2), length less one, value; or a 0, which size, number less one, the values.
_VALUE = 8
_SIZES = 3, 4, 8, 16
_CHANNELS = 4


def encode_brush(mask: np.ndarray) -> list[int]:
    """Return a mask (h, w) of 0 and 1 as Label Studio's brush keeps it: bytes.

    Example:
        >>> len(encode_brush(np.ones((480, 640), np.uint8)))
        72
    """
    bits = [f"{mask.size * _CHANNELS:032b}{_VALUE - 1:05b}"]
    bits += [f"{size - 1:04b}" for size in _SIZES]
    for on, run in zip(itertools.cycle((0, 255)), run_lengths(mask.ravel()).tolist()):
        left = run * _CHANNELS
        while left:
            length = min(left, 1 << _SIZES[-1])
            which = next(i for i, size in enumerate(_SIZES) if length <= 1 << size)
            bits.append(f"1{which:02b}{length - 1:0{_SIZES[which]}b}{on:08b}")
            left -= length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode_brush(rle: Any, height: int, width: int, where: object) -> np.ndarray:
    """Return the mask (h, w) uint8 of a brush: where it is more than half opaque.

    Args:
        rle: bytes, see ``encode_brush``.
        height: of the image, pixels.
        width: likewise.
        where: names the record.

    Raises:
        RecordError: it cannot be read, or is of another size.
    """
    try:
        data = bytes(rle)
    except (TypeError, ValueError) as error:
        raise RecordError(UNREADABLE, f"{where}: its 'rle' is no list of bytes") from error
    bits = f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}" if data else ""
    place = 0

    def number(size: int) -> int:
        nonlocal place
        text = bits[place : place + size]
        place += size
        if len(text) < size:
            raise RecordError(UNREADABLE, f"{where}: its 'rle' is cut off")
        return int(text, 2)

    count = number(32)
    if count != height * width * _CHANNELS:
        raise RecordError(
            OTHER_SIZE, f"{where}: its 'rle' holds {count} values, not 4 x {width} x {height}"
        )
    value_bits = number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    values: list[int] = []
    lengths: list[int] = []
    done = 0
    while done < count:
        repeated, size = number(1), sizes[number(2)]
        length = number(size) + 1
        if repeated:
            values.append(number(value_bits))
            lengths.append(length)
        else:
            values += [number(value_bits) for _ in range(length)]
            lengths += [1] * length
        done += length
    if done != count:
        raise RecordError(UNREADABLE, f"{where}: its 'rle' holds more than its {count} values")
    opaque = np.array(values) >= 1 << (value_bits - 1)
    pixels = np.repeat(opaque, lengths).reshape(height, width, _CHANNELS)
    return pixels[..., -1].astype(np.uint8)


@contextlib.contextmanager
def write(order: Order) -> Iterator[Add]:
    """Write ``tasks.json``, a task a line, and the labelling interface."""
    (order.folder / "label_config.xml").write_text(_CONFIG)
    version = f"promerge_d2 {__version__}"
    count = 0
    with open(order.folder / "tasks.json", "w", encoding="ascii") as file:

        def add(image: LabelledImage) -> str:
            nonlocal count
            results = []
            for number, mask in enumerate(image.masks):
                brush = encode_brush(mask_api.decode(mask.rle))
                results.append(
                    {
                        "id": f"mask{number}",
                        "type": "brushlabels",
                        "from_name": "masks",
                        "to_name": "image",
                        "original_width": image.width,
                        "original_height": image.height,
                        "image_rotation": 0,
                        "score": mask.score,
                        "value": {"format": "rle", "rle": brush, "brushlabels": [LABEL]},
                    }
                )
            place = f"images/{image.name}"
            try:
                link = _LINK + quote(place)
            except UnicodeEncodeError as error:
                raise UserError(f"{image.name!r}: a link cannot hold such a name") from error
            data = {
                "image": link,
                "file_name": image.name,
                "width": image.width,
                "height": image.height,
            }
            task = {"data": data, "predictions": [{"model_version": version, "result": results}]}
            text = json.dumps(task, separators=(",", ":"), allow_nan=False)
            file.write(f",\n{text}" if count else f"[\n{text}")
            count += 1
            return place

        yield add
        file.write("\n]\n" if count else "[]\n")


def read(source: Source) -> Iterator[LabelledImage]:
    """Read a file of tasks, as Label Studio exports them (JSON) or as ``write`` does."""
    path = source.path / "tasks.json" if source.path.is_dir() else source.path
    stream = JsonStream(path, "Label Studio file", spans=False)
    for number, element in enumerate(stream):
        if element.section:
            raise UserError(f"{path}: it is no list of tasks; export it as JSON, not JSON-MIN")
        where = f"{path}: task {number + 1}"
        if (image := _image(element.value, source, where)) is not None:
            yield image


def _image(task: Any, source: Source, where: str) -> LabelledImage | None:
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict):
        raise UserError(f"{where}: it has no 'data'; export the tasks as JSON, not JSON-MIN")
    name = checked_name(data.get("file_name") or _name_of(data.get("image")), where)
    results = _results(task)
    said = next(
        (r for r in results if isinstance(r, dict) and "original_width" in r),
        {"original_width": data.get("width"), "original_height": data.get("height")},
    )
    size: tuple[int, int] | None
    if said["original_width"] is None:
        size = source.size(name)
    else:
        try:
            size = (
                side(said["original_width"], "original_width", where),
                side(said.get("original_height"), "original_height", where),
            )
        except RecordError as error:
            source.refuse(error)
            size = None
    if size is None:
        return None
    masks = []
    for number, result in enumerate(results, start=1):
        place = f"{where} ({name}), result {number}"
        try:
            mask = _mask(result, *size, place)
        except RecordError as error:
            source.refuse(error)
            continue
        if mask is None:
            source.without_mask(place)
        else:
            masks.append(mask)
    return LabelledImage(name, *size, masks)


def _results(task: dict[str, Any]) -> list[Any]:
    """Return what people drew; where nobody did, the prediction that came last."""
    drawn = [
        item
        for item in task.get("annotations") or []
        if isinstance(item, dict) and not item.get("was_cancelled")
    ]
    found = drawn or [item for item in task.get("predictions") or [] if isinstance(item, dict)]
    results = found[-1].get("result") if found else []
    return results if isinstance(results, list) else [results]


def _name_of(link: Any) -> Any:
    """Return the name that a link stands for, folders included.

    Local storage has it after ``?d=``, uploads below ``/data/``, other links after their host.
    """
    if not isinstance(link, str):
        return link
    parts = urlsplit(link)
    if local := parse_qs(parts.query).get("d"):
        return local[0].removeprefix("images/")
    return unquote(parts.path).removeprefix("/data/").lstrip("/")


def _mask(result: Any, width: int, height: int, where: str) -> LabelledMask | None:
    """Read a result; None for a box."""
    kind = result.get("type") if isinstance(result, dict) else None
    value = result.get("value") if isinstance(result, dict) else None
    if not isinstance(value, dict):
        raise RecordError(BROKEN, f"{where}: it has no 'value'")
    if kind in ("rectanglelabels", "rectangle"):
        return None
    if kind not in ("brushlabels", "brush", "polygonlabels", "polygon"):
        raise RecordError(
            UNKNOWN_KIND,
            f"{where}: its type is {kind!r}; only brushes, polygons and boxes are read",
        )
    if (result.get("original_width"), result.get("original_height")) != (width, height):
        raise RecordError(OTHER_SIZE, f"{where}: its size is not that of the others, or missing")
    if result.get("image_rotation"):
        raise RecordError(UNKNOWN_KIND, f"{where}: its image was rotated by hand; rotate it back")
    if kind.startswith("brush"):
        rle = encode(decode_brush(value.get("rle"), height, width, where))
    else:
        points = np.array(value.get("points") or [], dtype=object)
        if points.ndim != 2 or points.shape[1] != 2:
            raise RecordError(BROKEN, f"{where}: its 'points' are no list of [x, y]")
        try:
            flat = (points.astype(float) * (width / 100, height / 100)).ravel().tolist()
        except (TypeError, ValueError) as error:
            raise RecordError(BROKEN, f"{where}: its 'points' hold no numbers") from error
        rle = from_polygons([flat], width, height, where)
    labels = [value[k] for k in ("brushlabels", "polygonlabels", "labels") if value.get(k)]
    label = str(labels[0][0]) if labels and isinstance(labels[0], list) else LABEL
    return LabelledMask(rle, score_of(result.get("score"), where), label)


FORMAT = Format("labelstudio", "Label Studio, brush masks", write, read)
