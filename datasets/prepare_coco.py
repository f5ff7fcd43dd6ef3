"""COCO val2017 to class-agnostic ground truth.

    $DETECTRON2_DATASETS/coco/annotations/instances_val2017.json   (annotations_trainval2017.zip)
    $DETECTRON2_DATASETS/coco/val2017/*.jpg                        (val2017.zip)

from https://cocodataset.org/#download become coco_cls_agnostic_instances_val2017.json beside the
annotations. Crowds become ignore regions.
"""

from __future__ import annotations

from official.prepare import parser_of, prepare
from official.readers import read_coco
from promerge_d2.cli.parser import run_tool


def main() -> int:
    """Read the official files, write the ground truth and its summary."""
    parser = parser_of(__doc__)
    args = parser.parse_args()
    return prepare(
        args,
        "cls_agnostic_coco",
        lambda folder, page: read_coco(folder / "annotations" / "instances_val2017.json", page),
    )


if __name__ == "__main__":
    run_tool(main)
