"""A ground truth for evaluation: all objects of a COCO file in a table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from promerge_d2.coco.fields import Tally
from promerge_d2.coco.read import CocoSource, iter_objects, read_images
from promerge_d2.coco.records import ImageId, ImageInfo
from promerge_d2.coco.table import InstanceTable
from promerge_d2.utils.errors import UserError


@dataclass(frozen=True)
class GroundTruth:
    """A ground-truth file.

    Attributes:
        name: the file, for messages.
        images: by id, in ascending order of ids (integers before strings).
        objects: in the order of the file, crowds included.
    """

    name: str
    images: dict[ImageId, ImageInfo]
    objects: InstanceTable

    @property
    def box_only(self) -> bool:
        """Whether there are objects and not one of them has a mask."""
        return 0 < len(self.objects) == len(self.objects.without_mask)

    def restricted_to(self, image_ids: set[ImageId]) -> GroundTruth:
        """Return the same ground truth with the images ``image_ids`` only."""
        kept = np.array([image_id in image_ids for image_id in self.objects.image_ids], bool)
        return GroundTruth(
            self.name,
            {i: image for i, image in self.images.items() if i in image_ids},
            self.objects.take(np.flatnonzero(kept[self.objects.image])),
        )


def read_ground_truth(path: str | os.PathLike) -> GroundTruth:
    """Read a COCO file as ground truth; see ``parse_ground_truth``."""
    return _ground_truth(CocoSource(path, "ground truth"))


def parse_ground_truth(content: Any, name: str) -> GroundTruth:
    """Read parsed JSON as ground truth of one class; what is left out is logged.

    Args:
        content: the parsed JSON.
        name: what messages call the file.

    Raises:
        UserError: not a COCO file, or one without images.
        RecordError: a record is refused; the message names it.
    """
    return _ground_truth(CocoSource.of(content, name))


def _ground_truth(file: CocoSource) -> GroundTruth:
    images = read_images(file.records("images"), file.name)
    if not images:
        raise UserError(f"{file.name} lists no images, so there is nothing to evaluate on")
    tally = Tally()
    objects = iter_objects(file.records("annotations"), images, file.name, tally=tally)
    table = InstanceTable.of(file.name, "annotations", images, objects)
    tally.log(file.name)
    return GroundTruth(file.name, images, table)
