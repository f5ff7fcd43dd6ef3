"""From a reader's ``Source`` to class-agnostic ground truth: one way for all data sets."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from official.files import image_size
from official.readers import Record, Source, one_of
from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.coco.read import ImageInfo, iter_objects, read_images
from promerge_d2.data.benchmarks import BENCHMARKS, Benchmark
from promerge_d2.utils.errors import EXIT_OK, UserError
from promerge_d2.utils.files import atomic_path, check_writable, path_inside, sha256_of, write_json
from promerge_d2.utils.progress import progress

logger = logging.getLogger(__name__)

IGNORE_MODES = ("ignore", "drop", "object")
_EXAMPLES = 5  # how many images a message names


def add_root(parser: ArgumentParser) -> None:
    """The argument ``--root``."""
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser(),
        help="the folder of the data sets; default: $DETECTRON2_DATASETS, else datasets",
    )


def parser_of(description: str) -> ArgumentParser:
    """The arguments that every ``prepare_*.py`` has."""
    parser = ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_root(parser)
    parser.add_argument(
        "--output",
        type=Path,
        help="the file to write; default: where the registered data set looks for it under --root",
    )
    parser.add_argument(
        "--ignore-regions",
        choices=IGNORE_MODES,
        default="ignore",
        help="crowds, DontCare, difficult objects, groups: detections there are neither right nor "
        "wrong (ignore, default); leave the regions out (drop); count them as objects (object)",
    )
    parser.add_argument(
        "--skip-bad-images",
        action="store_true",
        help="leave out images that are missing, unreadable or of another size than the "
        "annotations say, and name them in the summary; by default they are refused",
    )
    parser.add_argument(
        "--no-image-check",
        action="store_true",
        help="do not look at the images, for a machine that has the annotations only",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an output that this tool did not write"
    )
    return parser


def prepare(args: argparse.Namespace, name: str, read: Callable[[Path, str], Source]) -> int:
    """Read, check, write, say what was done.

    Args:
        args: of ``parser_of``.
        name: of the benchmark.
        read: the reader, given the data set's folder under ``--root`` and the official page.

    Returns:
        The exit code.

    Raises:
        UserError: the files are missing or broken, or the output is not ours to replace.
    """
    benchmark = BENCHMARKS[name]
    output = args.output or args.root / benchmark.json_file
    summary_file = output.with_suffix(".summary.json")
    if output.exists() and not summary_file.exists() and not args.overwrite:
        raise UserError(
            f"{output} exists and was not made by this tool (a ready-made file is used as it is); "
            "give --output another name, or --overwrite"
        )
    source = read(args.root / benchmark.json_file.split("/")[0], benchmark.page)
    check_writable(output)
    image_root = args.root / benchmark.image_root
    summary = write_ground_truth(
        source,
        output,
        None if args.no_image_check else image_root,
        ignore_regions=args.ignore_regions,
        skip_bad_images=args.skip_bad_images,
    )
    write_json(summary_file, {"name": name, **summary}, indent=2)
    _say(benchmark, output, summary)
    return EXIT_OK


def write_ground_truth(
    source: Source,
    output: Path,
    image_root: Path | None,
    *,
    ignore_regions: str = "ignore",
    skip_bad_images: bool = False,
) -> dict[str, Any]:
    """Write a class-agnostic COCO file, annotation by annotation, in one pass.

    Args:
        source: from a reader.
        output: the file; replaced as a whole.
        image_root: where the images are, to check their sizes; None leaves them unchecked, and
            then the source must have the sizes.
        ignore_regions: one of ``IGNORE_MODES``.
        skip_bad_images: leave out images that are missing or of another size, with what is on
            them, instead of refusing.

    Returns:
        Counts, choices and the SHA-256 of the file.

    Raises:
        UserError: a record is broken, or images are missing or of other sizes; they are named.
    """
    images, bad = _check_images(source, image_root, skip_bad_images)
    counts = _Counts()
    with (
        atomic_path(output) as part,
        open(part, "w", encoding="utf-8") as file,
    ):
        file.write('{"info": {"description": "class-agnostic ground truth"},\n"images": ')
        _write_list(file, (_image_record(image) for image in images.values()))
        file.write(',\n"annotations": ')
        usable = _of_images(source.annotations, set(bad))
        _write_list(file, _objects(usable, images, source.name, ignore_regions, counts))
        file.write(',\n"categories": [{"id": 1, "name": "object"}]}\n')
    return {
        "source": source.name,
        "images": len(images),
        "images_with_objects": len(counts.images),
        "objects": counts.objects,
        "objects_without_mask": counts.without_mask,
        "ignore_regions": counts.regions,
        "ignore_regions_are": ignore_regions,
        "image_sizes_checked": image_root is not None,
        "images_left_out": list(bad.values()),
        "notes": list(source.notes),
        "sha256": sha256_of(output),
    }


@dataclass
class _Counts:
    objects: int = 0
    without_mask: int = 0
    regions: int = 0

    def __post_init__(self) -> None:
        self.images: set[Any] = set()


def _check_images(
    source: Source, image_root: Path | None, skip: bool
) -> tuple[dict[Any, ImageInfo], dict[Any, str]]:
    """The images with their sizes, and what is wrong with those that were left out, by id."""
    bad: dict[Any, str] = {}
    records = []
    for record in progress(source.images, desc="images", unit="image"):
        where = f"{source.name}: image {record['id']!r}"
        path = path_inside(image_root or Path(), record["file_name"], where)
        if image_root is not None:
            reason, record = _check_image(path, record)
            if reason:
                bad[record["id"]] = f"{record['file_name']}: {reason}"
                continue
        records.append(record)
    if bad and (not skip or not records):
        names = list(bad.values())
        more = f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
        raise UserError(
            f"{len(names)} of {len(source.images)} images under {image_root} cannot be used: "
            f"{'; '.join(names[:_EXAMPLES])}{more}. Unpack the images there, or leave these out "
            "with --skip-bad-images"
        )
    return read_images(records, source.name), bad


def _check_image(path: Path, record: Record) -> tuple[str | None, Record]:
    if not path.is_file():
        return "it is not there", record
    try:
        width, height = image_size(path)
    except UserError as error:
        return str(error), record
    listed = (record.get("width", width), record.get("height", height))
    if listed != (width, height):
        return (
            f"it has {width} x {height} pixels (width x height), the annotations say "
            f"{listed[0]} x {listed[1]}"
        ), record
    return None, {**record, "width": width, "height": height}


def _of_images(annotations: Iterable[Record], left_out: set[Any]) -> Iterator[Record]:
    for record in annotations:
        if not isinstance(record, dict) or not one_of(record, "image_id", left_out):
            yield record


def _objects(
    annotations: Iterable[Record],
    images: dict[Any, ImageInfo],
    name: str,
    ignore_regions: str,
    counts: _Counts,
) -> Iterator[Record]:
    """Check, count and complete the annotations one by one."""
    raw, copies = itertools.tee(annotations)
    checked = iter_objects(progress(copies, desc="annotations", unit=""), images, name)
    for original, item in zip(raw, checked, strict=True):
        region = item.crowd and ignore_regions != "object"
        if region:
            counts.regions += 1
            if ignore_regions == "drop":
                continue
        else:
            counts.objects += 1
            counts.without_mask += item.rle is None
            counts.images.add(item.image_id)
        record = {
            "id": original.get("id", counts.objects + counts.regions),
            "image_id": item.image_id,
            "category_id": 1,
            "bbox": list(item.box),
            "area": item.area,
            "iscrowd": int(region),
        }
        if item.rle is not None:
            record["segmentation"] = original["segmentation"]
        yield record


def _image_record(image: ImageInfo) -> Record:
    return {
        "id": image.id,
        "file_name": image.file_name,
        "width": image.width,
        "height": image.height,
    }


def _write_list(file: TextIO, records: Iterable[Record]) -> None:
    """One record a line, so that a file of any size can be written and looked into."""
    separator = "[\n"
    for record in records:
        file.write(separator + json.dumps(record, separators=(",", ":"), allow_nan=False))
        separator = ",\n"
    file.write("[]" if separator == "[\n" else "\n]")


def _say(benchmark: Benchmark, output: Path, summary: dict[str, Any]) -> None:
    for note in summary["notes"]:
        logger.info("%s", note)
    if summary["images_left_out"]:
        logger.warning("left out: %s", "; ".join(summary["images_left_out"]))
    if benchmark.images is not None and benchmark.images != summary["images"]:
        logger.warning(
            "the whole data set has %d images, this one %d: figures on it are of a subset",
            benchmark.images,
            summary["images"],
        )
    what = {
        "ignore": "kept as ignore regions",
        "drop": "left out",
        "object": "counted as objects",
    }[summary["ignore_regions_are"]]
    print(
        f"{output}: {summary['images']} images ({summary['images_with_objects']} with objects), "
        f"{summary['objects']} objects; {summary['ignore_regions']} crowds and the like, {what}; "
        f"SHA-256 {summary['sha256']}"
    )
