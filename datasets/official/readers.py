"""Official files of the data sets, each in its own layout, as images and annotations of one class.

A reader takes the data set's folder and gives a ``Source``: COCO-style records that
``official.prepare`` checks and writes. Boxes are ``[x, y, width, height]`` in pixels
of the original image. ``iscrowd`` 1 marks an ignore region: crowds, KITTI's DontCare, VOC's
difficult objects, groups of OpenImages.
"""

from __future__ import annotations

import csv
import reprlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from official.files import need
from promerge_d2.coco.read import CocoSource, read_images
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import read_json
from promerge_d2.utils.image import image_size

Record = dict[str, Any]

_KEPT = ("id", "image_id", "bbox", "area", "iscrowd", "score", "segmentation")


@dataclass(frozen=True)
class Source:
    """What a reader found.

    Attributes:
        name: the official file or folder, for messages.
        images: ``id`` and ``file_name`` relative to the image root; ``width`` and ``height`` where
            the annotations have them.
        annotations: of these images, in the order of the source; read once, lazily.
        notes: the choices that were made, for the reader of the result.
    """

    name: str
    images: list[Record]
    annotations: Iterable[Record]
    notes: tuple[str, ...] = ()


def read_coco(
    annotations: Path, page: str, images: Iterable[str] | None = None, notes: tuple[str, ...] = ()
) -> Source:
    """A file in COCO's format (COCO, UVO).

    Args:
        annotations: the file.
        page: where it comes from.
        images: file names to keep, None for all.
        notes: for the result.

    Raises:
        UserError: the file is missing or broken, or lacks one of ``images``.
    """
    file = CocoSource(need(annotations, page), "annotations")
    records = kept = _images(file)
    if images is not None:
        by_name = {PurePosixPath(record["file_name"]).name: record for record in records}
        wanted = [PurePosixPath(name).name for name in images]
        missing = [name for name in wanted if name not in by_name]
        if missing:
            raise UserError(
                f"{annotations} does not list {len(missing)} of the {len(wanted)} images, among "
                f"them {missing[0]}; is it the file of another split?"
            )
        kept = [by_name[name] for name in dict.fromkeys(wanted)]
    return Source(str(annotations), kept, _annotations(file, records, kept), notes)


def read_coco20k(root: Path, page: str, names: Path) -> Source:
    """COCO20K: the images of COCO train2014 that the list ``names`` holds, one a line.

    Raises:
        UserError: a file is missing, or the list is empty or names other images.
    """
    lines = need(names, "https://github.com/valeoai/LOST, folder datasets").read_text("utf-8")
    listed = [line.strip() for line in lines.splitlines() if line.strip()]
    if not listed:
        raise UserError(f"{names} lists no images")
    return read_coco(
        root / "annotations" / "instances_train2014.json",
        page,
        listed,
        (f"the images that {names.name} lists",),
    )


# COCO's classes whose LVIS category has another name. LVIS has no hot dog, and v0.5 no oven.
LVIS_NAMES: Mapping[str, tuple[str, ...]] = {
    "person": ("person", "baby"),  # v0.5 calls the synset person.n.01 so
    "car": ("car_(automobile)",),
    "bus": ("bus_(vehicle)",),
    "train": ("train_(railroad_vehicle)",),
    "fire hydrant": ("fireplug",),
    "tie": ("necktie",),
    "skis": ("ski",),
    "sports ball": ("ball",),
    "wine glass": ("wineglass",),
    "orange": ("orange_(fruit)",),
    "hot dog": (),
    "donut": ("doughnut",),
    "couch": ("sofa",),
    "potted plant": ("flowerpot",),
    "tv": ("television_set",),
    "laptop": ("laptop_computer",),
    "mouse": ("mouse_(computer_equipment)",),
    "remote": ("remote_control",),
    "keyboard": ("computer_keyboard",),
    "cell phone": ("cellular_telephone",),
    "microwave": ("microwave_oven",),
    "hair drier": ("hair_dryer",),
}


def cocofied(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Which LVIS category is which class of COCO, by name, with the exceptions of ``LVIS_NAMES``.

    Args:
        names: of the LVIS categories.

    Returns:
        LVIS name to COCO name, and the classes of COCO that LVIS lacks.
    """
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES  # only this reader needs it

    there = set(names)
    found, lacking = {}, []
    for name in (category["name"] for category in COCO_CATEGORIES if category["isthing"]):
        candidates = LVIS_NAMES.get(name, (name.replace(" ", "_"),))
        match = next((candidate for candidate in candidates if candidate in there), None)
        if match is None:
            lacking.append(name)
        else:
            found[match] = name
    return found, lacking


def read_lvis(annotations: Path, page: str, only_coco: bool = True) -> Source:
    """LVIS v1 or v0.5; images are found by ``coco_url``, which may point to two folders.

    Args:
        annotations: ``lvis_v1_val.json`` or ``lvis_v0.5_val.json``.
        page: where it comes from.
        only_coco: keep the categories that COCO has ("cocofied"), else all.

    Raises:
        UserError: the file is missing or broken.
    """
    file = CocoSource(need(annotations, page), "annotations")
    images = _images(file, url_first=True)
    if not only_coco:
        records = _annotations(file, images, images)
        return Source(str(annotations), images, records, ("all categories",))
    categories = _categories(file)
    found, lacking = cocofied(categories.values())
    if not found:
        raise UserError(f"{annotations} has no category of COCO; is it an LVIS file?")
    notes = (
        f"{len(found)} categories that COCO has, mapped by name"
        + (f"; LVIS lacks {', '.join(lacking)}" if lacking else ""),
        "objects of categories that LVIS did not annotate in an image count as background, as "
        "the peers score it",
    )
    chosen = {category_id: name in found for category_id, name in categories.items()}
    records = _annotations(file, images, images, chosen)
    return Source(str(annotations), images, records, notes)


def read_objects365(
    folder: Path, page: str, patches: tuple[int, int] | None = (16, 40), split: str = "val"
) -> Source:
    """Objects365 v2: JSON with images in patch folders, ``images/v1/patch0/...`` or ``patch0/...``.

    Args:
        folder: ``objects365``, with ``annotations/zhiyuan_objv2_val.json`` and ``val``.
        page: where they come from.
        patches: first and last patch to keep, None for all.
        split: ``val`` or ``train``.

    Raises:
        UserError: a file is missing or broken, or an image is in no patch folder.
    """
    annotations = folder / "annotations" / f"zhiyuan_objv2_{split}.json"
    file = CocoSource(need(annotations, page), "annotations")
    flat = not (need(folder / split, page) / "images").is_dir()
    images, kept = _images(file), []
    for image in images:
        parts = PurePosixPath(image["file_name"]).parts
        patch = parts[-2].removeprefix("patch") if len(parts) > 1 else ""
        if not patch.isdecimal():
            raise UserError(
                f"{annotations}: the image with id {image['id']!r} has the file name "
                f"{image['file_name']!r}, which is in no patch folder"
            )
        if patches is None or patches[0] <= int(patch) <= patches[1]:
            kept.append({**image, "file_name": "/".join(parts[-2:])} if flat else image)
    note = "all patches"
    if patches:
        note = (
            f"patches {patches[0]} to {patches[1]}; that the paper used 16 to 40 is inferred from "
            "the name of its file, objects365_16-40.json"
        )
    return Source(str(annotations), kept, _annotations(file, images, kept), (note,))


def read_kitti(folder: Path, page: str) -> Source:
    """KITTI object detection: ``training/label_2/*.txt`` beside ``training/image_2/*.png``.

    DontCare regions become ignore regions; the eight classes are objects. The text has no image
    sizes and no ids: an image's id is its number, annotations are numbered in order.

    Raises:
        UserError: a folder is missing, or a line is not KITTI's; the message names it.
    """
    labels = need(folder / "training" / "label_2", page)
    need(folder / "training" / "image_2", page)
    files = sorted(labels.glob("*.txt"))
    if not files:
        raise UserError(f"{labels} holds no .txt files; get data_object_label_2.zip from {page}")
    for file in files:
        if not file.stem.isdecimal():
            raise UserError(f"{file}: KITTI's label files are named by number, as 000000.txt")
    images = [
        {"id": int(file.stem), "file_name": f"training/image_2/{file.stem}.png"} for file in files
    ]
    return Source(str(labels), images, _kitti_lines(files))


def _kitti_lines(files: Sequence[Path]) -> Iterator[Record]:
    number = 0
    for file in files:
        for line, text in enumerate(file.read_text("utf-8").splitlines(), start=1):
            fields = text.split()
            if not fields:
                continue
            try:
                left, top, right, bottom = map(float, fields[4:8])
            except ValueError as error:
                raise UserError(
                    f"{file}, line {line}: {text[:60]!r} is not KITTI's: class, truncation, "
                    "occlusion, angle, then left, top, right, bottom"
                ) from error
            number += 1
            yield {
                "id": number,
                "image_id": int(file.stem),
                "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
                "iscrowd": int(fields[0] == "DontCare"),
            }


def read_sa1b(folder: Path, page: str) -> Source:
    """SA-1B: ``sa_*.json`` beside ``sa_*.jpg``, at any depth under ``folder``.

    Raises:
        UserError: there are none, or one is broken; the message names it.
    """
    files = sorted(need(folder, page).rglob("sa_*.json"))
    if not files:
        raise UserError(
            f"{folder} holds no sa_*.json; get an archive (sa_000000.tar) from {page} and unpack "
            "it there"
        )
    images = []
    for file in files:
        content = read_json(file, "annotation")
        image = content.get("image") if isinstance(content, dict) else None
        if not isinstance(image, dict) or not isinstance(content.get("annotations"), list):
            raise UserError(f"{file} is not SA-1B's: it needs 'image' and 'annotations'")
        if image.get("file_name") != f"{file.stem}.jpg":
            raise UserError(
                f"{file} describes {image.get('file_name')!r}, another image than its own"
            )
        path = file.with_suffix(".jpg").relative_to(folder).as_posix()
        size = {key: image.get(key) for key in ("width", "height")}
        images.append({"id": image.get("image_id"), "file_name": path, **size})
    return Source(str(folder), images, _sa1b_masks(files))


def _sa1b_masks(files: Sequence[Path]) -> Iterator[Record]:
    for file in files:
        content = read_json(file, "annotation")
        for record in content["annotations"]:
            if isinstance(record, dict):
                record = {**_kept(record), "image_id": content["image"].get("image_id")}
            yield record


def read_voc(folder: Path, page: str, sets: Sequence[str], inner: str = "") -> Source:
    """Pascal VOC's layout: ``Annotations/*.xml``, ``ImageSets/Main/*.txt``, ``JPEGImages``.

    Difficult objects become ignore regions. VOC counts pixels from 1, both ends included.

    Args:
        folder: the image root.
        page: where the files come from.
        sets: which lists of ``ImageSets/Main`` to join.
        inner: where under ``folder`` the layout starts.

    Raises:
        UserError: a file is missing or broken; the message names it.
    """
    base = folder / inner
    names: dict[str, None] = {}
    for name in sets:
        lines = need(base / "ImageSets" / "Main" / f"{name}.txt", page).read_text("utf-8")
        names |= dict.fromkeys(line.split()[0] for line in lines.splitlines() if line.strip())
    images, objects = [], []
    for number, name in enumerate(names, start=1):
        file = need(base / "Annotations" / f"{name}.xml", page)
        # numbers such as 000005 are kept as ids, names are numbered
        image_id = int(name) if name.isdecimal() else number
        width, height, boxes = _voc_xml(file)
        path = file.parent.parent / "JPEGImages" / f"{name}.jpg"
        images.append(
            {
                "id": image_id,
                "file_name": path.relative_to(folder).as_posix(),
                "width": width,
                "height": height,
            }
        )
        objects += [(image_id, *box) for box in boxes]
    annotations = (
        {"id": n, "image_id": image_id, "bbox": box, "iscrowd": difficult}
        for n, (image_id, box, difficult) in enumerate(objects, start=1)
    )
    return Source(str(base / "Annotations"), images, annotations, (f"sets {' and '.join(sets)}",))


def _voc_xml(file: Path) -> tuple[int, int, list[tuple[list[float], int]]]:
    try:
        tree = ElementTree.parse(file).getroot()
        boxes = []
        for item in tree.iter("object"):
            corners = [float(item.find("bndbox").find(key).text) for key in _CORNERS]
            left, top, right, bottom = corners
            box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
            boxes.append((box, int(item.findtext("difficult", "0"))))
        size = tree.find("size")
        return int(size.find("width").text), int(size.find("height").text), boxes
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not a VOC annotation: {error}") from error


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_openimages(folder: Path, page: str) -> Source:
    """OpenImages validation boxes: a CSV with corners as fractions of the image.

    Groups (``IsGroupOf``) become ignore regions. Ids of images are the official hexadecimal ones.

    Args:
        folder: ``openImages``, with ``annotations/validation-annotations-bbox.csv`` and
            ``validation/*.jpg``.
        page: where they come from.

    Raises:
        UserError: a file is missing or broken; the message names the line.
    """
    boxes = need(folder / "annotations" / "validation-annotations-bbox.csv", page)
    photos = need(folder / "validation", page)
    rows: dict[str, list[tuple[int, list[float], int]]] = {}
    with open(boxes, newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                corners = [float(row[key]) for key in ("XMin", "YMin", "XMax", "YMax")]
                group = int(row["IsGroupOf"] == "1")
                rows.setdefault(row["ImageID"], []).append((line - 1, corners, group))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{boxes}, line {line}: it has no {error} among ImageID, XMin, XMax, YMin, "
                    "YMax, IsGroupOf"
                ) from error
    images = []
    for name in sorted(rows):
        width, height = image_size(need(photos / f"{name}.jpg", page))
        images.append({"id": name, "file_name": f"{name}.jpg", "width": width, "height": height})
    annotations = (
        {
            "id": number,
            "image_id": image["id"],
            "bbox": [
                left * image["width"],
                top * image["height"],
                (right - left) * image["width"],
                (bottom - top) * image["height"],
            ],
            "iscrowd": group,
        }
        for image in images
        for number, (left, top, right, bottom), group in rows[image["id"]]
    )
    return Source(str(boxes), images, annotations)


def _images(file: CocoSource, url_first: bool = False) -> list[Record]:
    """Return the ``images`` of a COCO file, with the keys that count, by ascending id.

    With ``url_first``, the folder and name that end ``coco_url`` go before ``file_name``.
    """
    rows = file.records("images")
    if url_first:
        rows = (
            {**row, "file_name": None} if isinstance(row, dict) and "coco_url" in row else row
            for row in rows
        )
    images = read_images(rows, file.name, need_size=False, need_name=True)
    return [
        {key: value for key, value in image.record().items() if value is not None}
        for image in images.values()
    ]


def _annotations(
    file: CocoSource,
    images: list[Record],
    kept: list[Record],
    categories: Mapping[int | str, bool] | None = None,
) -> Iterator[Record]:
    """Annotations of the images ``kept`` out of ``images``, of categories that are true."""
    left_out = {image["id"] for image in images} - {image["id"] for image in kept}
    for index, record in enumerate(file.records("annotations")):
        if not isinstance(record, dict):
            yield record  # the writer names it
        elif one_of(record, "image_id", left_out):
            continue
        elif categories is None:
            yield _kept(record)
        elif not one_of(record, "category_id", categories):
            raise UserError(
                f"{file.name}: annotations[{index}] (id {record.get('id')!r}) has the category_id "
                f"{reprlib.repr(record.get('category_id'))}, which the file does not list"
            )
        elif categories[record["category_id"]]:
            yield _kept(record)


def _categories(file: CocoSource) -> dict[int | str, str]:
    """Names of the categories of a COCO-style file by their ids."""
    names = {}
    for index, record in enumerate(file.records("categories")):
        whole = isinstance(record, dict) and isinstance(record.get("name"), str)
        if not whole or not isinstance(record.get("id"), int | str):
            raise UserError(f"{file.name}: categories[{index}] has no 'id' or no 'name'")
        names[record["id"]] = record["name"]
    return names


def one_of(record: Record, key: str, values: Container[Any]) -> bool:
    """Whether a record's id is among ``values``; lists and the like are not."""
    return isinstance(record.get(key), int | float | str) and record[key] in values


def _kept(record: Record) -> Record:
    return {key: record[key] for key in _KEPT if key in record}
