"""LVIS val (v1, or v0.5), reduced to the categories that COCO has, to one class.

    $DETECTRON2_DATASETS/coco/annotations/lvis_v1_val.json   (or lvis_v0.5_val.json)
    $DETECTRON2_DATASETS/coco/{train2017,val2017}/*.jpg      (LVIS v1 val uses both)

from https://www.lvisdataset.org/dataset and https://cocodataset.org/#download become
lvis1.0_cocofied_val_cls_agnostic.json (or lvis0.5_...) beside the annotations.
"""

from __future__ import annotations

from official.prepare import parser_of, prepare
from official.readers import read_lvis
from promerge_d2.cli.parser import run_tool


def main() -> int:
    """Read the official files, write the ground truth and its summary."""
    parser = parser_of(__doc__)
    parser.add_argument("--version", choices=("v1", "v0.5"), default="v1")
    parser.add_argument(
        "--categories",
        choices=("coco", "all"),
        default="coco",
        help="those that COCO has (default, as the papers do), or all",
    )
    args = parser.parse_args()
    name = "cls_agnostic_lvis" if args.version == "v1" else "cls_agnostic_lvis_v0.5"
    return prepare(
        args,
        name,
        lambda folder, page: read_lvis(
            folder / "annotations" / f"lvis_{args.version}_val.json",
            page,
            args.categories == "coco",
        ),
    )


if __name__ == "__main__":
    run_tool(main)
