"""KITTI object detection (training images) to class-agnostic boxes.

    $DETECTRON2_DATASETS/kitti/training/label_2/*.txt   (data_object_label_2.zip)
    $DETECTRON2_DATASETS/kitti/training/image_2/*.png   (data_object_image_2.zip)

from https://www.cvlibs.net/datasets/kitti/eval_object.php become
kitti/annotations/trainval_cls_agnostic.json. DontCare becomes ignore regions.
"""

from __future__ import annotations

from official.prepare import parser_of, prepare
from official.readers import read_kitti
from promerge_d2.cli.parser import run_tool


def main() -> int:
    """Read the official files, write the ground truth and its summary."""
    parser = parser_of(__doc__)
    args = parser.parse_args()
    return prepare(args, "cls_agnostic_kitti", read_kitti)


if __name__ == "__main__":
    run_tool(main)
