"""Pascal VOC 2007 (trainval and test) to class-agnostic boxes.

    $DETECTRON2_DATASETS/voc/VOCdevkit/VOC2007/{Annotations,ImageSets,JPEGImages}

from http://host.robots.ox.ac.uk/pascal/VOC/voc2007 become
voc/annotations/trainvaltest_2007_cls_agnostic.json. Difficult objects become ignore regions.
"""

from __future__ import annotations

from official.prepare import parser_of, prepare
from official.readers import read_voc
from promerge_d2.cli.parser import run_tool


def main() -> int:
    """Read the official files, write the ground truth and its summary."""
    parser = parser_of(__doc__)
    args = parser.parse_args()
    return prepare(
        args,
        "cls_agnostic_voc",
        lambda folder, page: read_voc(folder, page, ("trainval", "test"), "VOCdevkit/VOC2007"),
    )


if __name__ == "__main__":
    run_tool(main)
