"""UVO (a COCO-style file of frames) to class-agnostic ground truth.

    $DETECTRON2_DATASETS/uvo/annotations/UVO_sparse_val.json   (or another, with --annotations)
    $DETECTRON2_DATASETS/uvo/all_UVO_frames/...

from https://sites.google.com/view/unidentified-video-object/dataset become
uvo/annotations/val_sparse_cleaned_cls_agnostic.json. Crowds become ignore regions.
"""

from __future__ import annotations

from pathlib import Path

from official.prepare import parser_of, prepare
from official.readers import read_coco
from promerge_d2.cli.parser import run_tool


def main() -> int:
    """Read the official files, write the ground truth and its summary."""
    parser = parser_of(__doc__)
    parser.add_argument("--annotations", type=Path, help="the official COCO-style file")
    args = parser.parse_args()
    return prepare(
        args,
        "cls_agnostic_uvo",
        lambda folder, page: read_coco(
            args.annotations or folder / "annotations" / "UVO_sparse_val.json", page
        ),
    )


if __name__ == "__main__":
    run_tool(main)
