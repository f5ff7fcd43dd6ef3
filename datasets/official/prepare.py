"""From a reader's ``Source`` to class-agnostic ground truth: one way for all data sets."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from official.readers import Record, Source, one_of
from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.coco.fields import Tally
from promerge_d2.coco.read import iter_objects, read_images
from promerge_d2.coco.records import ImageInfo, Instance, locate, slashes
from promerge_d2.coco.write import coco_writer
from promerge_d2.data.benchmarks import BENCHMARKS, Benchmark
from promerge_d2.data.datasets import datasets_root
from promerge_d2.utils.errors import EXIT_OK, UserError
from promerge_d2.utils.files import check_writable, path_inside, sha256_of, write_json
from promerge_d2.utils.image import image_size
from promerge_d2.utils.progress import progress

logger = logging.getLogger(__name__)

IGNORE_MODES = ("ignore", "drop", "object")
_EXAMPLES = 5  # how many images a message names


def add_root(parser: ArgumentParser) -> None:
    """Add the argument ``--root``."""
    parser.add_argument(
        "--root",
        type=Path,
        default=datasets_root(),
        help="the folder of the data sets; default: $DETECTRON2_DATASETS, else datasets",
    )


def parser_of(description: str) -> ArgumentParser:
    """Make a parser with the arguments that every ``prepare_*.py`` has."""
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
    source = read(args.root / benchmark.json_file.parts[0], benchmark.page)
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
    counts, tally = _Counts(), Tally()
    with coco_writer(output, {"description": "class-agnostic ground truth"}) as out:
        for image in images.values():
            out.add_image({**image.record(), "file_name": slashes(image.file_name)})
        usable = _of_images(source.annotations, set(bad))
        usable = progress(usable, desc="annotations", unit="")
        for item in iter_objects(usable, images, source.name, tally=tally):
            counts.add(item, ignore_regions)
            if item.crowd and ignore_regions == "drop":
                continue
            out.add_annotation(_record(item, counts, ignore_regions))
    tally.log(source.name)
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


@dataclasses.dataclass
class _Counts:
    """What was written, and the regions that were not counted as objects."""

    objects: int = 0
    without_mask: int = 0
    regions: int = 0

    def __post_init__(self) -> None:
        self.images: set[Any] = set()

    def add(self, item: Instance, ignore_regions: str) -> None:
        if item.crowd and ignore_regions != "object":
            self.regions += 1
            return
        self.objects += 1
        self.without_mask += not item.has_mask
        self.images.add(item.image_id)


def _check_images(
    source: Source, image_root: Path | None, skip: bool
) -> tuple[dict[Any, ImageInfo], dict[Any, str]]:
    """Give the images with their sizes, and what is wrong with those left out, by id."""
    images = read_images(source.images, source.name, need_size=image_root is None, need_name=True)
    bad: dict[Any, str] = {}
    for image in progress(list(images.values()), desc="images", unit="image"):
        path = path_inside(
            image_root or Path(), image.file_name, f"{source.name}: image {image.id!r}"
        )
        if image_root is not None:
            reason, images[image.id] = _check_image(path, image)
            if reason:
                bad[image.id] = f"{image.file_name}: {reason}"
                del images[image.id]
    if bad and (not skip or not images):
        names = list(bad.values())
        more = f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
        raise UserError(
            f"{len(names)} of {len(source.images)} images under {image_root} cannot be used: "
            f"{'; '.join(names[:_EXAMPLES])}{more}. Unpack the images there, or leave these out "
            "with --skip-bad-images"
        )
    return images, bad


def _check_image(path: Path, image: ImageInfo) -> tuple[str | None, ImageInfo]:
    """Compare an image with its file: why it cannot be used, or None; it with its size."""
    path = Path(locate(path.parent, path.name))
    if not path.is_file():
        return "it is not there", image
    try:
        width, height = image_size(path)
    except UserError as error:
        return str(error), image
    listed = (image.width or width, image.height or height)
    if listed != (width, height):
        return (
            f"it has {width} x {height} pixels (width x height), the annotations say "
            f"{listed[0]} x {listed[1]}"
        ), image
    return None, dataclasses.replace(image, width=width, height=height)


def _of_images(annotations: Iterable[Record], left_out: set[Any]) -> Iterator[Record]:
    for record in annotations:
        if not isinstance(record, dict) or not one_of(record, "image_id", left_out):
            yield record


def _record(item: Instance, counts: _Counts, ignore_regions: str) -> Record:
    record = {
        "id": item.where.record.get("id", counts.objects + counts.regions),
        "image_id": item.image_id,
        "category_id": 1,
        "bbox": list(item.box),
        "area": item.area,
        "iscrowd": int(item.crowd and ignore_regions != "object"),
    }
    if item.has_mask:
        record["segmentation"] = item.segmentation()
    return record


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
