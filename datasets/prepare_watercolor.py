"""Watercolor (cross-domain detection, train and test) to class-agnostic boxes.

    $DETECTRON2_DATASETS/watercolor/{Annotations,ImageSets,JPEGImages}

from https://naoto0804.github.io/cross_domain_detection become
watercolor/annotations/traintest_cls_agnostic.json. Difficult objects become ignore regions.
"""

from __future__ import annotations

from promerge_d2.utils.cli import run_tool
from promerge_d2.zero_shot.prepare import parser_of, prepare
from promerge_d2.zero_shot.readers import read_voc


def main() -> int:
    """Read the official files, write the ground truth and its summary."""
    parser = parser_of(__doc__)
    args = parser.parse_args()
    return prepare(
        args,
        "cls_agnostic_watercolor",
        lambda folder, page: read_voc(folder, page, ("train", "test")),
    )


if __name__ == "__main__":
    run_tool(main)
