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
from collections.abc import Iterable

import numpy as np

from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.coco.read import CocoSource, iter_objects, read_images
from promerge_d2.coco.records import ImageId
from promerge_d2.coco.write import coco_writer
from promerge_d2.data.datasets import datasets_root
from promerge_d2.utils.errors import EXIT_OK, UserError

logger = logging.getLogger(__name__)


def draw_share(images: Iterable[ImageId], percentage: float, seed: int) -> set[ImageId]:
    """Draw some of the images.

    Args:
        images: ids, ascending.
        percentage: of the images to draw, rounded, at least one.
        seed: of the order in which images are taken.
    """
    ids = list(images)
    order = np.random.default_rng(seed).permutation(len(ids))
    return {ids[place] for place in order[: max(1, round(len(ids) * percentage / 100))]}


def main() -> int:
    """Read the labels, write a share of them."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--percentage", type=int, required=True, help="of the images, 1 to 99")
    parser.add_argument("--seed", type=int, default=0, help="another draw (0)")
    args = parser.parse_args()
    if not 1 <= args.percentage <= 99 or args.seed < 0:
        raise UserError("--percentage is 1 to 99, --seed 0 or more")
    folder = datasets_root() / "coco/annotations"
    source = CocoSource(folder / "instances_train2017.json", "labels of COCO train2017")
    images = read_images(source.records("images"), source.name)
    share = draw_share(images, args.percentage, args.seed)
    output = folder / f"{args.percentage}perc_instances_train2017.json"
    categories = list(source.records("categories"))
    with coco_writer(output, source.info, categories) as out:
        for image in images.values():
            if image.id in share:
                out.add_image(image.record())
        for item in iter_objects(source.records("annotations"), images, source.name):
            if item.image_id in share:
                out.add_annotation(item.where.record)
    logger.info("%s: %d of %d images", output, out.images, len(images))
    return EXIT_OK


if __name__ == "__main__":
    run_tool(main)
