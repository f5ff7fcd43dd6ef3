"""Make a label file of ours of another tool's: CutLER, ProMerge, CuVLER, COCO, YOLO, CVAT, ...

Exit code: 0 everything is in it, 1 not finished, 2 some annotations could not be used (named),
3 refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.pseudo_labels.formats import FORMATS
from promerge_d2.pseudo_labels.importing import import_format, import_labels
from promerge_d2.utils.errors import EXIT_FAILURES, EXIT_OK, UserError
from promerge_d2.utils.files import check_writable


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(prog="promerge import", description=__doc__.splitlines()[0])
    parser.add_argument("--input", required=True, help="the label file, or the folder of a format")
    parser.add_argument("--output", required=True, help="COCO JSON to write")
    parser.add_argument(
        "--from",
        dest="format_name",
        choices=("coco", *FORMATS),
        default="coco",
        help="what it is (%(default)s: any COCO JSON, and what CutLER, ProMerge and CuVLER write); "
        + "; ".join(f"{name}: {each.title}" for name, each in FORMATS.items()),
    )
    parser.add_argument(
        "--image-root",
        metavar="DIR",
        help="folder of the photographs, for formats that do not hold their sizes (yolo)",
    )
    parser.add_argument(
        "--images-from",
        metavar="FILE",
        help="COCO JSON with the images of a bare list (ProMerge's released file)",
    )
    parser.add_argument(
        "--leave-out-damaged",
        action="store_true",
        help="leave out images and annotations that cannot be read, and name them; by default the "
        "file is refused",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, import, say what was done."""
    args = make_parser().parse_args(argv)
    check_writable(args.output)
    if args.format_name == "coco":
        if args.image_root is not None:
            raise UserError("--image-root is for other formats; COCO JSON holds the images' sizes")
        found = import_labels(args.input, args.output, args.images_from, args.leave_out_damaged)
    else:
        if args.images_from is not None:
            raise UserError(f"--images-from is for COCO JSON, not for --from {args.format_name}")
        found = import_format(
            args.input, args.output, args.format_name, args.image_root, args.leave_out_damaged
        )
    print(f"{found.masks} masks on {found.images} images: {args.output}")
    if found.swapped:
        print(f"  width and height of {found.swapped} images were exchanged, as CutLER's are")
    for line in (*found.mended.lines("put right"), *found.left_out.lines("left out")):
        print(line)
    return EXIT_FAILURES if found.left_out.problems else EXIT_OK
