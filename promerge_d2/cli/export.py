"""Write a label file in the format of another tool.

Exit code: 0 everything is in it, 1 not finished, 2 something was left out (named), 3 refused.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.pseudo_labels.exporting import IMAGES, export_labels
from promerge_d2.pseudo_labels.formats import FORMATS
from promerge_d2.utils.errors import EXIT_FAILURES, EXIT_OK
from promerge_d2.utils.progress import progress


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(prog="promerge export", description=__doc__.splitlines()[0])
    parser.add_argument("labels", help="COCO JSON, by whomever it was written")
    parser.add_argument(
        "--to",
        required=True,
        choices=FORMATS,
        help="; ".join(f"{name}: {each.title}" for name, each in FORMATS.items()),
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder to write")
    parser.add_argument(
        "--image-root", metavar="DIR", help="folder that the names in the file are relative to"
    )
    parser.add_argument(
        "--images",
        choices=IMAGES,
        help="link the photographs into the folder, copy them, or leave them where they are "
        "(link with --image-root, else none)",
    )
    parser.add_argument(
        "--valid-share",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="yolo and rfdetr: part of the images that is for validation (%(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, export, say what was done."""
    args = make_parser().parse_args(argv)
    images = args.images or ("link" if args.image_root else "none")
    found = export_labels(
        args.labels,
        args.output,
        args.to,
        images,
        args.image_root,
        args.valid_share,
        bar=functools.partial(progress, desc="images", unit="image"),
    )
    print(f"{found.masks} masks on {found.images} images: {args.output}")
    print(f"  photographs: {found.photographs} ({images})")
    if found.changes.masks:
        print(
            f"  {found.changes.masks} masks differ by {found.changes.pixels} pixels in all: "
            "bridges between their parts"
        )
    if not FORMATS[args.to].keeps_scores:
        print("  scores are not in it: the format has no place for them")
    for line in found.left_out.lines("left out"):
        print(line)
    return EXIT_FAILURES if found.left_out.problems else EXIT_OK
