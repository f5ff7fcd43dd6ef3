"""From a record to an example: its pixels, and which of its labels are trained on (our own)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data.transforms import AugInput, TransformList
from PIL import Image

from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import load_image

TARGET, LEFT_OUT, CROWD = range(3)  # values of gt_ignore


@dataclass(frozen=True)
class LabelChoice:
    """What to do with an image's labels; by default all but crowds are trained on alike.

    Args:
        min_score: labels below are not trained on. A label without a score has 1.
        max_per_image: only the labels of best score are trained on, at most so many; 0: all.
        ignore_rest: labels that are not trained on, and crowds, are ignored instead of taken for
            background.
        weight_power: a label's losses weigh (its score / the best of its image) to this power.
        soft_power: the target of its classification is that ratio to this power.

    Raises:
        UserError: a value that cannot be.
    """

    min_score: float = 0.0
    max_per_image: int = 0
    ignore_rest: bool = False
    weight_power: float = 0.0
    soft_power: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_per_image", "weight_power", "soft_power"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"INPUT.PSEUDO_LABELS.{name.upper()} is {getattr(self, name)}; give 0 or more"
                )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> LabelChoice:
        """Return the choice of ``INPUT.PSEUDO_LABELS``."""
        return cls(**{key.lower(): value for key, value in cfg.INPUT.PSEUDO_LABELS.items()})

    def __call__(self, annotations: Sequence[dict]) -> list[int | None]:
        """Sort an image's labels.

        Args:
            annotations: of detectron2's dict, with ``iscrowd`` and ``score`` or without.

        Returns:
            For each: TARGET, LEFT_OUT or CROWD, or None where it is as if it did not exist. Of
            equal scores the first in the list are the best.

        Example:
            >>> choice = LabelChoice(max_per_image=1, ignore_rest=True)
            >>> choice([{"score": 0.1}, {"score": 0.9}, {"score": 0.2}, {"iscrowd": 1}])
            [1, 0, 1, 2]
        """
        kinds: list[int | None] = [None] * len(annotations)
        scores = [score_of(annotation) for annotation in annotations]
        trained = 0
        for place in sorted(range(len(annotations)), key=lambda place: -scores[place]):
            full = self.max_per_image and trained == self.max_per_image
            if annotations[place].get("iscrowd", 0):
                kinds[place] = CROWD if self.ignore_rest else None
            elif scores[place] >= self.min_score and not full:
                kinds[place] = TARGET
                trained += 1
            elif self.ignore_rest:
                kinds[place] = LEFT_OUT
        return kinds

    def has_target(self, record: dict) -> bool:
        """Return whether a dict's image has anything to train on."""
        return TARGET in self(record["annotations"])


def read_pixels(record: dict, image_format: str) -> np.ndarray:
    """Read an image as it was labelled, in a detector's format.

    Args:
        record: detectron2's dict of the image; ``width`` and ``height`` are added where they are
            missing.
        image_format: ``INPUT.FORMAT``: RGB, BGR, or another of detectron2's.

    Returns:
        (H, W, 3) uint8, upright; other formats as detectron2's ``read_image`` gives them.

    Raises:
        UserError: the image is not there, cannot be read, or has another size than the record says.
    """
    pixels = load_image(record["file_name"])
    try:
        utils.check_image_size(record, pixels)
    except utils.SizeMismatchError as error:
        raise UserError(f"{error} promerge validate names every such image") from error
    if image_format == "RGB":
        return pixels
    return utils.convert_PIL_to_numpy(Image.fromarray(pixels), image_format)


class LabelMapper(DatasetMapper):
    """detectron2's mapper for labels with scores, and for any photograph that can be labelled.

    Beside detectron2's, the instances of an example have, where the choice needs them,
    ``gt_ignore`` (int64: TARGET, LEFT_OUT or CROWD), ``gt_weights`` and ``gt_soft`` (float32, in
    [0, 1]). Without an option of ``LabelChoice``, and for photographs of 8 bits that are no turned
    TIFFs, its examples are those of detectron2's; only that a box outside the image, beside a mask
    in it, is the mask's.
    """

    @configurable
    def __init__(self, *, choice: LabelChoice = LabelChoice(), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.choice = choice

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """Return the constructor's arguments."""
        return {**super().from_config(cfg, is_train), "choice": LabelChoice.from_config(cfg)}

    def __call__(self, dataset_dict: dict) -> dict:
        """Make an example of a record.

        Args:
            dataset_dict: detectron2's standard dict.

        Returns:
            The dict with ``image`` (3, h, w) uint8 and, for training, ``instances`` in its pixels,
            without ``annotations``.

        Raises:
            UserError: the image cannot be read, or has another size than the record says.
        """
        example = copy.deepcopy(dataset_dict)
        shown = AugInput(read_pixels(example, self.image_format))
        transforms = self.augmentations(shown)
        example["image"] = torch.from_numpy(shown.image.transpose(2, 0, 1).copy())
        if not self.is_train:
            example.pop("annotations", None)
        elif "annotations" in example:
            self._transform_annotations(example, transforms, shown.image.shape[:2])
        return example

    def _transform_annotations(
        self, dataset_dict: dict, transforms: TransformList, image_shape: tuple[int, int]
    ) -> None:
        annotations = dataset_dict.pop("annotations")
        kinds = self.choice(annotations)
        chosen = [(a, kind) for a, kind in zip(annotations, kinds, strict=True) if kind is not None]
        for annotation, _ in chosen:
            if not self.use_instance_mask:
                annotation.pop("segmentation", None)
            annotation.pop("keypoints", None)
        moved = [
            utils.transform_instance_annotations(annotation, transforms, image_shape)
            for annotation, _ in chosen
        ]
        instances = utils.annotations_to_instances(moved, image_shape, self.instance_mask_format)
        if self.choice.ignore_rest:
            instances.gt_ignore = torch.tensor([kind for _, kind in chosen], dtype=torch.int64)
        best = max((score_of(a) for a, kind in chosen if kind == TARGET), default=0.0)
        ratios = torch.tensor([min(score_of(a) / best, 1.0) if best else 1.0 for a, _ in chosen])
        if self.choice.weight_power:
            instances.gt_weights = ratios**self.choice.weight_power
        if self.choice.soft_power:
            instances.gt_soft = ratios**self.choice.soft_power
        if instances.has("gt_masks") and len(instances):
            # a box outside the image beside a mask that is in it: the mask knows
            lost = ~instances.gt_boxes.nonempty() | self.recompute_boxes
            boxes = instances.gt_masks.get_bounding_boxes().tensor[lost]
            instances.gt_boxes.tensor[lost] = boxes.to(instances.gt_boxes.tensor)
        dataset_dict["instances"] = utils.filter_empty_instances(instances)


def score_of(annotation: dict) -> float:
    """Return a label's score; ground truth, which has none, is sure."""
    return annotation.get("score", 1.0)
