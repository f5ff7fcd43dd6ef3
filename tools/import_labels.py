#!/usr/bin/env python
"""Make a label file of ours of one by CutLER, ProMerge or CuVLER, or of any COCO JSON.

Exit code: 0 everything is in it, 1 not finished, 2 some annotations could not be used (named),
3 refused.
"""

from __future__ import annotations

from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.pseudo_labels.importing import NAMED, import_labels
from promerge_d2.utils.errors import EXIT_FAILURES, EXIT_OK
from promerge_d2.utils.files import check_writable


def main() -> int:
    """Parse, import, say what was done."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", required=True, help="the label file")
    parser.add_argument("--output", required=True, help="COCO JSON to write")
    parser.add_argument(
        "--images-from",
        metavar="FILE",
        help="COCO JSON with the images of a bare list (ProMerge's released file)",
    )
    args = parser.parse_args()
    check_writable(args.output)
    found = import_labels(args.input, args.output, args.images_from)
    print(f"{found.masks} masks on {found.images} images: {args.output}")
    if found.swapped:
        print(f"  width and height of {found.swapped} images were exchanged, as CutLER's are")
    if found.left_out:
        print(f"  {found.left_out} annotations could not be used:")
        for example in found.examples:
            print(f"    {example}")
        if found.left_out > NAMED:
            print("    ...")
        return EXIT_FAILURES
    return EXIT_OK


if __name__ == "__main__":
    run_tool(main)
