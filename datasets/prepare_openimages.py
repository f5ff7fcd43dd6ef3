"""OpenImages validation to class-agnostic boxes.

    $DETECTRON2_DATASETS/openImages/annotations/validation-annotations-bbox.csv
    $DETECTRON2_DATASETS/openImages/validation/*.jpg

from https://storage.googleapis.com/openimages/web/download_v7.html become
openImages/annotations/openimages_val_cls_agnostic.json. Groups become ignore regions.
"""

from __future__ import annotations

from official.prepare import parser_of, prepare
from official.readers import read_openimages
from promerge_d2.cli.parser import run_tool


def main() -> int:
    """Read the official files, write the ground truth and its summary."""
    parser = parser_of(__doc__)
    args = parser.parse_args()
    return prepare(args, "cls_agnostic_openimages", read_openimages)


if __name__ == "__main__":
    run_tool(main)
