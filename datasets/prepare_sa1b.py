"""Images of SA-1B to class-agnostic ground truth.

    $DETECTRON2_DATASETS/sa1b/**/sa_*.json   beside   sa_*.jpg

from https://ai.meta.com/datasets/segment-anything-downloads (sa_000000.tar and so on, unpacked at
any depth) become sa1b/annotations/sa1b.json. Which images the paper used is not known: it took one
archive.
"""

from __future__ import annotations

from official.prepare import parser_of, prepare
from official.readers import read_sa1b
from promerge_d2.cli.parser import run_tool


def main() -> int:
    """Read the official files, write the ground truth and its summary."""
    parser = parser_of(__doc__)
    args = parser.parse_args()
    return prepare(args, "cls_agnostic_sa1b", read_sa1b)


if __name__ == "__main__":
    run_tool(main)
