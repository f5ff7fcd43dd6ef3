"""Comic (cross-domain detection, train and test) to class-agnostic boxes.

    $DETECTRON2_DATASETS/comic/{Annotations,ImageSets,JPEGImages}

from https://naoto0804.github.io/cross_domain_detection become
comic/annotations/traintest_cls_agnostic.json. Difficult objects become ignore regions.
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
        args, "cls_agnostic_comic", lambda folder, page: read_voc(folder, page, ("train", "test"))
    )


if __name__ == "__main__":
    run_tool(main)
