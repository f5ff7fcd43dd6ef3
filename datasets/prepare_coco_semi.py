#!/usr/bin/env python
"""Draw a share of COCO's labelled training images, for semi-supervised fine-tuning.

    $DETECTRON2_DATASETS/coco/annotations/instances_train2017.json   (annotations_trainval2017.zip)

from https://cocodataset.org/#download gives {percentage}perc_instances_train2017.json beside it.
CutLER's own draws have the same names and hold other images; they are in
dl.fbaipublicfiles.com/cutler/coco-smi/annotations.zip. With the same seed a smaller share is a part
of a larger one.
"""

from __future__ import annotations

import logging

import numpy as np

from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.data.datasets import datasets_root
from promerge_d2.utils.errors import EXIT_OK, UserError
from promerge_d2.utils.files import read_json, write_json

logger = logging.getLogger(__name__)


def draw_share(data: dict, percentage: float, seed: int) -> dict:
    """Keep some of the images, and their annotations.

    Args:
        data: a COCO JSON.
        percentage: of the images to keep, rounded, at least one.
        seed: of the order in which images are taken.
    """
    images = sorted(data["images"], key=lambda image: image["id"])
    order = np.random.default_rng(seed).permutation(len(images))
    count = max(1, round(len(images) * percentage / 100))
    kept = {images[place]["id"] for place in order[:count]}
    return {
        **data,
        "images": [image for image in data["images"] if image["id"] in kept],
        "annotations": [thing for thing in data["annotations"] if thing["image_id"] in kept],
    }


def main() -> int:
    """Read the labels, write a share of them."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--percentage", type=int, required=True, help="of the images, 1 to 99")
    parser.add_argument("--seed", type=int, default=0, help="another draw (0)")
    args = parser.parse_args()
    if not 1 <= args.percentage <= 99 or args.seed < 0:
        raise UserError("--percentage is 1 to 99, --seed 0 or more")
    folder = datasets_root() / "coco/annotations"
    data = read_json(folder / "instances_train2017.json", "labels of COCO train2017")
    share = draw_share(data, args.percentage, args.seed)
    output = folder / f"{args.percentage}perc_instances_train2017.json"
    write_json(output, share)
    logger.info("%s: %d of %d images", output, len(share["images"]), len(data["images"]))
    return EXIT_OK


if __name__ == "__main__":
    run_tool(main)
