"""Objects365 v2 val to class-agnostic boxes.

    $DETECTRON2_DATASETS/objects365/annotations/zhiyuan_objv2_val.json
    $DETECTRON2_DATASETS/objects365/val/images/{v1,v2}/patch*/*.jpg   (or val/patch*/*.jpg)

from https://www.objects365.org/download.html become objects365_16-40.json beside the annotations,
or, with --patches all, zhiyuan_objv2_val_cls_agnostic.json. That the paper's subset is patches 16
to 40 is inferred from the name of its file. Crowds become ignore regions. A few listed images are
not in the archives: add --skip-bad-images.
"""

from __future__ import annotations

from official.prepare import parser_of, prepare
from official.readers import read_objects365
from promerge_d2.cli.parser import run_tool


def parse_patches(text: str) -> tuple[int, int] | None:
    """Read ``16-40`` as (16, 40), ``all`` as None."""
    if text == "all":
        return None
    first, last = map(int, text.split("-"))
    return first, last


def main() -> int:
    """Read the official files, write the ground truth and its summary."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "--patches",
        type=parse_patches,
        default=(16, 40),
        metavar="A-B",
        help="first and last patch, or all; default 16-40",
    )
    args = parser.parse_args()
    name = "cls_agnostic_objects365_16-40" if args.patches else "cls_agnostic_objects365"
    return prepare(args, name, lambda folder, page: read_objects365(folder, page, args.patches))


if __name__ == "__main__":
    run_tool(main)
