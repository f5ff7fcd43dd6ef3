"""Copy-paste: objects of one training image pasted onto another (docs/recipe.md).

Shape letters: N objects of the receiver, M of the donor, h and w pixels of the receiver.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Boxes, Instances

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

    stretched = F.interpolate(
        donor["image"][None].float(), size, mode="bilinear", align_corners=False, antialias=True
    )
    small = stretched[0].round().to(receiver["image"].dtype).numpy()
    small_masks = _shrink(donor["instances"].gt_masks.tensor.numpy()[chosen], size)

    image = receiver["image"].clone()
    pixels = image.numpy()
    there = receiver["instances"]  # without gt_masks where detectron2 found no annotation
    count = len(there)
    # numpy counts the pixels of a mask ten times as fast as torch
    masks = np.zeros((count + len(chosen), height, width), bool)
    if count:
        masks[:count] = there.gt_masks.tensor.numpy()
    hinders = is_object(there).tolist()
    areas = [np.count_nonzero(mask) for mask in masks[:count]]
    pasted: list[int] = []
    for index, small_mask in zip(chosen, small_masks, strict=True):
        window = _window(small_mask)
        if window is None:
            continue
        shape = small_mask[window]
        rows, columns = window
        y = slice(rows.start + top, rows.stop + top)
        x = slice(columns.start + left, columns.stop + left)
        frame = masks[:, y, x]
        both = np.empty_like(shape)  # one array for all: making each anew takes most of the time
        hidden = [np.count_nonzero(np.logical_and(mask, shape, out=both)) for mask in frame[:count]]
        if any(
            hinder and lost >= MAX_COVER * area > 0
            for hinder, lost, area in zip(hinders, hidden, areas, strict=True)
        ):
            continue
        np.copyto(pixels[:, y, x], small[:, rows, columns], where=shape)
        outside = ~shape
        for other in np.flatnonzero(hidden):
            frame[other] &= outside
            areas[other] -= hidden[other]
        frame[count] = shape
        areas.append(np.count_nonzero(shape))
        hinders.append(True)
        pasted.append(index)
        count += 1
    visible = torch.tensor(areas, dtype=torch.int64) > 0
    instances = Instances((height, width))
    instances.gt_masks = BitMasks(torch.from_numpy(masks[:count])[visible])
    instances.gt_boxes = _boxes(instances.gt_masks)
    for name, values in donor["instances"].get_fields().items():
        if not instances.has(name):
            own = there.get(name) if len(there) else values[:0]
            instances.set(name, torch.cat([own, values[pasted]])[visible])
    return {**receiver, "image": image, "instances": instances}


def _shrink(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize masks (M, H, W) bool to (M, *size); each pixel is the one that its centre falls on."""
    rows, columns = (
        F.interpolate(torch.arange(old).float().view(1, 1, -1, 1), (new, 1), mode="nearest-exact")
        for old, new in zip(masks.shape[1:], size, strict=True)
    )
    return masks[:, rows.long().view(-1, 1).numpy(), columns.long().view(-1).numpy()]


def _window(mask: np.ndarray) -> tuple[slice, slice] | None:
    """Return the rows and columns that a mask (h, w) spans, or None for an empty one."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _boxes(masks: BitMasks) -> Boxes:
    """Return the tight boxes of masks that have a pixel each, 40 times as fast as ``BitMasks``."""
    windows = filter(None, map(_window, masks.tensor.numpy()))
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in windows]
    return Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))


def is_object(instances: Instances) -> torch.Tensor:
    """Return (N,) bool: whether each is trained on, and not ignored."""
    if instances.has("gt_ignore"):
        return instances.gt_ignore == TARGET
    return torch.ones(len(instances), dtype=torch.bool)


class CopyPasteMapper:
    """A detectron2 mapper that pastes objects of another image of the data set.

    Donors have the orientation of the image where ``portrait`` is given, as those of the recipe do:
    a portrait stretched to a landscape is distorted.

    Args:
        mapper: turns a dict into a training example (resized and flipped).
        dataset: all dicts, to draw donors from.
        rate: share of the images that receive objects, in [0, 1].
        min_ratio: see ``copy_paste``.
        max_ratio: see ``copy_paste``.
        portrait: (len(dataset),) bool, whether each is at least as high as wide; None: donors have
            any orientation.

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
        portrait: np.ndarray | None = None,
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
        every = np.zeros(len(dataset), bool) if portrait is None else portrait
        self.groups = np.flatnonzero(~every), np.flatnonzero(every)
        self.grouped = portrait is not None

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one dict, and paste objects of another onto it."""
        receiver = self.mapper(dataset_dict)
        # detectron2 seeds numpy's global state in each worker
        rng = np.random.default_rng(np.random.randint(2**31))
        if rng.random() >= self.rate:
            return receiver
        donor = self._draw_donor(dataset_dict, rng)
        if donor is None:
            return receiver
        return copy_paste(receiver, self.mapper(donor), rng, *self.ratios)

    def _draw_donor(self, receiver: dict, rng: np.random.Generator) -> dict | None:
        """Return another image's dict, or None where there is none."""
        high = self.grouped and receiver["height"] >= receiver["width"]
        group = self.groups[int(high)]
        start = int(rng.integers(len(group)))
        for step in range(len(group)):
            donor = self.dataset[group[(start + step) % len(group)]]
            if donor["file_name"] != receiver["file_name"]:
                return copy.deepcopy(donor)
        return None
