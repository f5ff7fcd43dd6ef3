"""A ground truth for evaluation: all objects of a COCO file in a table."""

from __future__ import annotations

import os
from dataclasses import dataclass

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
        images = {i: image for i, image in self.images.items() if i in image_ids}
        return GroundTruth(self.name, images, self.objects.on_images(image_ids))


def read_ground_truth(file: str | os.PathLike | CocoSource) -> GroundTruth:
    """Read a COCO file as ground truth of one class; what is left out is logged.

    Args:
        file: its path, or parsed JSON as ``CocoSource.of`` wraps it.

    Raises:
        UserError: not a COCO file, or one without images.
        RecordError: a record is refused; the message names it.
    """
    if not isinstance(file, CocoSource):
        file = CocoSource(file, "ground truth")
    images = read_images(file.records("images"), file.name)
    if not images:
        raise UserError(f"{file.name} lists no images, so there is nothing to evaluate on")
    tally = Tally()
    objects = iter_objects(file.records("annotations"), images, file.name, tally=tally)
    table = InstanceTable.of(file.name, "annotations", images, objects)
    tally.log(file.name)
    return GroundTruth(file.name, images, table)
