"""Merge the shards of a labelling into one COCO JSON, checking every image.

Exit code: 0 every image is in it, 1 images are not labelled yet (named), 2 merged, but some images
failed (named) and are left out, 3 refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.labeler import LABELERS
from promerge_d2.pseudo_labels import merge_labels, print_summary
from promerge_d2.utils.errors import EXIT_FAILURES, EXIT_OK


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(prog="promerge merge", description=__doc__.splitlines()[0])
    parser.add_argument("output", help="the --output of the labelling; its .parts are merged")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, merge, say what happened."""
    args = make_parser().parse_args(argv)
    summary = merge_labels(args.output)
    print(f"{summary.masks} masks on {summary.images} images: {args.output}")
    print_summary(
        summary, {k: v for labeler in LABELERS.values() for k, v in labeler.reasons.items()}
    )
    return EXIT_FAILURES if summary.failures else EXIT_OK
