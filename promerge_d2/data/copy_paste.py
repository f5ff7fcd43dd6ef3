"""Copy-paste: objects of one training image pasted onto another (promerge.md B3).

Shape letters: N objects of the receiver, M of the donor, h and w pixels of the receiver.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Instances

from promerge_d2.data.mapper import TARGET
from promerge_d2.utils.errors import UserError

MAX_COVER = 0.5  # a pasted object may hide less than this share of any other


def copy_paste(
    receiver: dict, donor: dict, rng: np.random.Generator, min_ratio: float, max_ratio: float
) -> dict:
    """Paste some objects of ``donor`` onto ``receiver``.

    The donor's image is stretched to ``ratio`` times the receiver's size (one ratio for both
    sides) and laid at a random place inside it; of M objects, one is pasted if M = 1, else
    between 1 and M - 1. An object that would cover half or more of one that is there is left out,
    as is one that vanishes in the scaling. Objects keep the pixels that stay visible; those left
    with none are removed. What is only ignored (``gt_ignore``) is neither pasted nor a hindrance.

    Args:
        receiver: a mapped detectron2 dict: ``image`` (3, h, w) uint8 and ``instances`` with
            ``gt_boxes``, ``gt_classes``, ``gt_masks`` (BitMasks) in its pixels, or without any
            object. Other fields, which are tensors, stay with their objects.
        donor: another such dict, with the same fields.
        rng: source of chance.
        min_ratio: smallest ratio, in (0, 1].
        max_ratio: largest ratio, in (0, 1].

    Returns:
        A new dict; the inputs stay as they are. Boxes are those of the visible masks.
    """
    objects = torch.nonzero(is_object(donor["instances"])).flatten().numpy()
    count = len(objects)
    if not count:
        return receiver
    height, width = receiver["image"].shape[1:]
    ratio = rng.uniform(min_ratio, max_ratio)
    chosen = objects[rng.permutation(count)[: 1 if count == 1 else rng.integers(1, count)]]
    size = (max(1, round(ratio * height)), max(1, round(ratio * width)))
    top = int(rng.integers(0, height - size[0] + 1))
    left = int(rng.integers(0, width - size[1] + 1))
    window = (slice(top, top + size[0]), slice(left, left + size[1]))

    small = F.interpolate(
        donor["image"][None].float(), size, mode="bilinear", align_corners=False, antialias=True
    )[0].round()
    donor_masks = donor["instances"].gt_masks.tensor[chosen]
    small_masks = F.interpolate(donor_masks[None].float(), size, mode="nearest-exact")[0] > 0.5

    image = receiver["image"].clone()
    there = receiver["instances"]  # without gt_masks where detectron2 found no annotation
    masks = list(there.gt_masks.tensor.clone()) if len(there) else []
    hinders = is_object(there).tolist()
    pasted = []
    for index, small_mask in zip(chosen, small_masks, strict=True):
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[window] = small_mask
        others = (other for other, counts in zip(masks, hinders, strict=True) if counts)
        if not mask.any() or any((m & mask).sum() >= MAX_COVER * m.sum() > 0 for m in others):
            continue
        image[:, mask] = small[:, small_mask].to(image.dtype)
        masks = [m & ~mask for m in masks] + [mask]
        hinders.append(True)
        pasted.append(index)
    visible = torch.tensor([bool(mask.any()) for mask in masks], dtype=torch.bool)
    stacked = torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool)
    instances = Instances((height, width))
    instances.gt_masks = BitMasks(stacked[visible])
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    for name, values in donor["instances"].get_fields().items():
        if not instances.has(name):
            own = there.get(name) if len(there) else values[:0]
            instances.set(name, torch.cat([own, values[pasted]])[visible])
    return {**receiver, "image": image, "instances": instances}


def is_object(instances: Instances) -> torch.Tensor:
    """(N,) bool: what is trained on, not ignored."""
    if instances.has("gt_ignore"):
        return instances.gt_ignore == TARGET
    return torch.ones(len(instances), dtype=torch.bool)


class CopyPasteMapper:
    """A detectron2 mapper that pastes objects of another image of the data set.

    It runs where the data loader runs, in its workers, and never takes an image as its own donor.

    Args:
        mapper: turns a dict into a training example (resized and flipped).
        dataset: all dicts, to draw donors from.
        rate: share of the images that receive objects, in [0, 1].
        min_ratio: see ``copy_paste``.
        max_ratio: see ``copy_paste``.

    Raises:
        UserError: a share or ratio outside its range.
    """

    def __init__(
        self,
        mapper: Callable[[dict], dict],
        dataset: Sequence[dict],
        rate: float,
        min_ratio: float,
        max_ratio: float,
    ) -> None:
        if not (0 <= rate <= 1 and 0 < min_ratio <= max_ratio <= 1):
            raise UserError(
                f"INPUT.COPY_PASTE has RATE {rate}, MIN_RATIO {min_ratio}, MAX_RATIO {max_ratio}; "
                "it takes 0 <= RATE <= 1 and 0 < MIN_RATIO <= MAX_RATIO <= 1"
            )
        self.mapper = mapper
        self.dataset = dataset
        self.rate = rate
        self.ratios = (min_ratio, max_ratio)

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one dict, with objects pasted."""
        receiver = self.mapper(dataset_dict)
        # detectron2 seeds numpy's global state in each worker
        rng = np.random.default_rng(np.random.randint(2**31))
        if rng.random() >= self.rate:
            return receiver
        donor = self._draw_donor(dataset_dict["file_name"], rng)
        if donor is None:
            return receiver
        return copy_paste(receiver, self.mapper(donor), rng, *self.ratios)

    def _draw_donor(self, file_name: str, rng: np.random.Generator) -> dict | None:
        """Another image's dict, or None when there is none."""
        start = int(rng.integers(len(self.dataset)))
        for step in range(len(self.dataset)):
            donor = self.dataset[(start + step) % len(self.dataset)]
            if donor["file_name"] != file_name:
                return copy.deepcopy(donor)
        return None
