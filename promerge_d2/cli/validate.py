"""Check a pseudo-label file: what is in it, what is wrong, and pictures to look at.

Exit code: 0 nothing is wrong, 1 not finished, 2 problems were found and named, 3 refused.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pycocotools import mask as mask_api

from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.coco.check import NO_REASON, Validation, validate_labels
from promerge_d2.coco.fields import NAMED
from promerge_d2.coco.index import CocoIndex
from promerge_d2.pseudo_labels.inputs import TarImage, find_image, find_size
from promerge_d2.utils.errors import EXIT_FAILURES, EXIT_OK, UserError
from promerge_d2.utils.files import check_writable, write_json
from promerge_d2.utils.image import ImageError, load_image
from promerge_d2.visualization.gallery import Labelled, write_gallery


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(prog="promerge validate", description=__doc__.splitlines()[0])
    parser.add_argument("labels", help="COCO JSON, by whomever it was written")
    parser.add_argument(
        "--images", metavar="DIR", help="look for the photographs here and compare their sizes"
    )
    parser.add_argument("--report", metavar="FILE", help="write what was found as JSON")
    parser.add_argument(
        "--gallery", metavar="DIR", help="write a page of labelled photographs; needs --images"
    )
    parser.add_argument(
        "--count", type=int, default=200, help="photographs in it, evenly spaced (200)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, draw, say what was found."""
    args = make_parser().parse_args(argv)
    if args.gallery and not args.images:
        raise UserError("--gallery needs --images, the folder of the photographs")
    if args.count < 1:
        raise UserError(f"--count is {args.count}; it takes 1 or more")
    if args.images and not Path(args.images).is_dir():
        raise UserError(f"--images {args.images} is no folder")
    for file in filter(None, (args.report, args.gallery and f"{args.gallery}/index.html")):
        check_writable(file)

    size_of = functools.partial(find_size, Path(args.images)) if args.images else None
    found = validate_labels(args.labels, size_of)
    print("\n".join(_lines(found)))
    if args.report:
        write_json(args.report, dataclasses.asdict(found), indent=1)
    if args.gallery:
        page = draw_gallery(args.labels, found, args.images, args.gallery, args.count)
        print(f"to look at: {page}")
    return EXIT_FAILURES if found.problems else EXIT_OK


def draw_gallery(
    labels: str, found: Validation, images: str | os.PathLike, folder: str, count: int
) -> Path:
    """Write a page of labelled images.

    Args:
        labels: COCO JSON.
        found: what ``validate_labels`` found in it.
        images: the folder that its file names start from.
        folder: where the page is written.
        count: images on it at most, evenly spaced.

    Returns:
        The page.
    """
    index = CocoIndex(labels, damaged=lambda error: None)  # named by the checks
    summary = list(_lines(found))[:2]
    if count < found.images:
        summary.append(f"below: {count} of them, evenly spaced")
    pictures = _pictures(index, Path(images), count)
    return write_gallery(folder, Path(labels).name, summary, found.histogram(), pictures)


def _lines(found: Validation) -> Iterator[str]:
    """Say what was found, line by line."""
    scores = (
        "no scores" if found.scores is None else "scores {:.4g} to {:.4g}".format(*found.scores)
    )
    yield f"{found.images} images, {found.masks} masks, {scores}"
    reasons = ", ".join(f"{reason}: {count}" for reason, count in found.empty.items())
    yield f"images without a mask: {reasons or 'none'}"
    yield "images by number of masks:"
    histogram = found.histogram()
    most = max(1, *(count for _, count in histogram))
    for number, count in histogram:
        yield f"    {number:>9} {count:>9} {'#' * -(-40 * count // most)}".rstrip()
    if not found.problems:
        yield "nothing is wrong"
    for problem, count in sorted(found.problems.items()):
        yield f"{count} {problem}:"
        yield from (f"    {example}" for example in found.examples[problem])
        if count > NAMED:
            yield "    ..."


def _pictures(index: CocoIndex, root: Path, count: int) -> Iterator[Labelled]:
    """Draw images of the file, evenly spaced; those that cannot be read are left out."""
    count = min(count, len(index))
    for number in range(count):
        image, objects = index.read(number * len(index) // count)
        name = image.file_name or ""
        found = find_image(root, name) if name else None
        if found is None:
            continue
        try:
            pixels = load_image(found.open() if isinstance(found, TarImage) else found)
        except ImageError:
            continue
        if pixels.shape[:2] != (image.height, image.width):
            continue  # named by the checks
        seen = [item for item in objects if item.rle is not None]
        masks = [mask_api.decode(item.rle).astype(bool) for item in seen]
        scores = [item.where.record.get("score") for item in seen]
        reason = "" if masks else image.reason or NO_REASON
        yield Labelled(name, pixels, masks, scores, reason)
