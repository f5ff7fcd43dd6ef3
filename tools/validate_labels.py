#!/usr/bin/env python
"""Check a pseudo-label file: what is in it, what is wrong, and pictures to look at.

Exit code: 0 nothing is wrong, 1 not finished, 2 problems were found and named, 3 refused.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

from pycocotools import mask as mask_api

from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.coco.check import NO_REASON, Validation, validate_labels
from promerge_d2.coco.fields import NAMED
from promerge_d2.coco.index import CocoIndex
from promerge_d2.pseudo_labels.inputs import TarImage, find_image, find_size
from promerge_d2.utils.errors import EXIT_FAILURES, EXIT_OK, UserError
from promerge_d2.utils.files import check_writable, write_json
from promerge_d2.utils.image import ImageError, load_image
from promerge_d2.visualization.gallery import Labelled, write_gallery


def main() -> int:
    """Parse, check, draw, say what was found."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
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
    args = parser.parse_args()
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
    lines = list(_lines(found))
    print("\n".join(lines))
    if args.report:
        write_json(args.report, dataclasses.asdict(found), indent=1)
    if args.gallery:
        index = CocoIndex(args.labels, damaged=lambda error: None)  # named by the checks
        images = _pictures(index, Path(args.images), args.count)
        summary = lines[:2]
        if args.count < found.images:
            summary.append(f"below: {args.count} of them, evenly spaced (--count)")
        page = write_gallery(
            args.gallery, Path(args.labels).name, summary, found.histogram(), images
        )
        print(f"to look at: {page}")
    return EXIT_FAILURES if found.problems else EXIT_OK


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
        found = find_image(root, image.file_name)
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
        yield Labelled(image.file_name, pixels, masks, scores, reason)


if __name__ == "__main__":
    run_tool(main)
