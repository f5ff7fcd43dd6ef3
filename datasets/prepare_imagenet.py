"""Look whether ImageNet-1K's training images are where the configs expect them; nothing to convert.

    $DETECTRON2_DATASETS/imagenet/train/n01440764/*.JPEG   (ILSVRC2012_img_train.tar, unpacked)

from https://image-net.org/download-images: 1,000 class folders with 1,281,167 images, of which
only the pictures are used, never the classes. Make their pseudo-labels with
tools/label_images.py.
"""

from __future__ import annotations

import logging

from official.files import need
from official.prepare import add_root
from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.utils.errors import EXIT_OK

logger = logging.getLogger(__name__)
CLASSES, IMAGES = 1000, 1281167


def main() -> int:
    """Count folders and images."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_root(parser)
    folder = parser.parse_args().root / "imagenet" / "train"
    need(folder, "https://image-net.org/download-images")
    classes = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
    images = sum(len(list(entry.glob("*.JPEG"))) for entry in classes)
    print(f"{folder}: {len(classes)} class folders, {images} images")
    if (len(classes), images) != (CLASSES, IMAGES):
        logger.warning("ImageNet-1K has %d class folders with %d images", CLASSES, IMAGES)
    return EXIT_OK


if __name__ == "__main__":
    run_tool(main)
