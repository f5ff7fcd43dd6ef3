"""Make a label file of ours of one by CutLER, ProMerge or CuVLER, or of any COCO JSON.

Exit code: 0 everything is in it, 1 not finished, 2 some annotations could not be used (named),
3 refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.coco.fields import Tally
from promerge_d2.pseudo_labels.importing import import_labels
from promerge_d2.utils.errors import EXIT_FAILURES, EXIT_OK
from promerge_d2.utils.files import check_writable


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(prog="promerge import", description=__doc__.splitlines()[0])
    parser.add_argument("--input", required=True, help="the label file")
    parser.add_argument("--output", required=True, help="COCO JSON to write")
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
    found = import_labels(args.input, args.output, args.images_from, args.leave_out_damaged)
    print(f"{found.masks} masks on {found.images} images: {args.output}")
    if found.swapped:
        print(f"  width and height of {found.swapped} images were exchanged, as CutLER's are")
    _print(found.mended, "put right")
    _print(found.left_out, "left out")
    return EXIT_FAILURES if found.left_out.problems else EXIT_OK


def _print(tally: Tally, what: str) -> None:
    for problem, count in sorted(tally.problems.items()):
        print(f"  {what}: {count} {problem}:")
        print(*(f"    {example}" for example in tally.examples[problem]), sep="\n")
