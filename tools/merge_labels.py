#!/usr/bin/env python
"""Merge the shards of tools/label_images.py into one COCO JSON, checking every image.

Exit code: 0 every image is in it, 1 images are not summary yet (named), 2 merged, but some images
failed (named) and are left out, 3 refused.
"""

from __future__ import annotations

from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.labeler import LABELERS
from promerge_d2.pseudo_labels import merge_labels, print_summary
from promerge_d2.utils.errors import EXIT_FAILURES, EXIT_OK


def main() -> int:
    """Parse, merge, say what happened."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", help="the --output of label_images.py; its .parts are merged")
    args = parser.parse_args()
    summary = merge_labels(args.output)
    print(f"{summary.masks} masks on {summary.images} images: {args.output}")
    print_summary(
        summary, {k: v for labeler in LABELERS.values() for k, v in labeler.reasons.items()}
    )
    return EXIT_FAILURES if summary.failures else EXIT_OK


if __name__ == "__main__":
    run_tool(main)
