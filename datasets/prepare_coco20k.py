"""COCO20K, the 19,817 images of COCO train2014 that object discovery uses, to one class.

    $DETECTRON2_DATASETS/coco/annotations/instances_train2014.json (annotations_trainval2014.zip)
    $DETECTRON2_DATASETS/coco/train2014/*.jpg                      (train2014.zip)
    $DETECTRON2_DATASETS/coco/annotations/coco_20k_filenames.txt   (LOST, folder datasets)

from https://cocodataset.org/#download and https://github.com/valeoai/LOST become
coco20k_trainval_gt.json beside the annotations. Crowds become ignore regions.
"""

from __future__ import annotations

from pathlib import Path

from official.prepare import parser_of, prepare
from official.readers import read_coco20k
from promerge_d2.cli.parser import run_tool


def main() -> int:
    """Read the official files, write the ground truth and its summary."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "--list",
        type=Path,
        help="file names or paths, one a line; default: coco/annotations/coco_20k_filenames.txt",
    )
    args = parser.parse_args()
    return prepare(
        args,
        "cls_agnostic_coco20k",
        lambda folder, page: read_coco20k(
            folder, page, args.list or folder / "annotations" / "coco_20k_filenames.txt"
        ),
    )


if __name__ == "__main__":
    run_tool(main)
