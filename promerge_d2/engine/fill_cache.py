"""Compute the tokens of a frozen-ViT detector's images ahead of its training."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from detectron2.structures import ImageList

from promerge_d2.data.loader import training_images
from promerge_d2.data.mapper import LabelChoice, read_pixels
from promerge_d2.pseudo_labels.local_engine import choose_workers
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.progress import progress
from promerge_d2.utils.threads import one_thread


@dataclass(frozen=True)
class View:
    """A size and a flip at which the detector is shown an image.

    Attributes:
        size: shorter side in pixels.
        longest: what the longer side is held to.
        flip: ``"none"``, ``"horizontal"`` or ``"vertical"``.
    """

    size: int
    longest: int
    flip: str = "none"

    def __call__(self, pixels: np.ndarray) -> torch.Tensor:
        """Show an image (h, w, 3) uint8 as the mapper does: (3, h', w') uint8."""
        steps = [T.ResizeShortestEdge([self.size], self.longest, "choice")]
        if self.flip != "none":
            sides = {"horizontal": False, "vertical": False, self.flip: True}
            steps.append(T.RandomFlip(prob=1.0, **sides))
        shown = T.AugInput(pixels)
        T.AugmentationList(steps)(shown)
        return torch.from_numpy(shown.image.transpose(2, 0, 1).copy())


@dataclass
class Filled:
    """What ``fill_cache`` did.

    Attributes:
        images: files that were looked at.
        computed, there: views whose tokens were not there, and were.
        bytes: of all these views' tokens on disk.
        seconds: in all.
        failures: why an image could not be used, by file.
    """

    images: int = 0
    computed: int = 0
    there: int = 0
    bytes: int = 0
    seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)


class Photo(NamedTuple):
    """An image file, and its size in pixels as the data set says."""

    file_name: str
    width: int | None = None
    height: int | None = None


def views_of(cfg: CfgNode) -> dict[Photo, list[View]]:
    """List every view of every image of ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    A training image is seen at each of ``INPUT.MIN_SIZE_TRAIN``, and with flips in two copies.

    Returns:
        Views by image.
    """
    flip = cfg.INPUT.RANDOM_FLIP
    train = [
        View(size, cfg.INPUT.MAX_SIZE_TRAIN, copy)
        for size in cfg.INPUT.MIN_SIZE_TRAIN
        for copy in dict.fromkeys(["none", flip])
    ]
    test = [View(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)]
    keep = None
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        keep = LabelChoice.from_config(cfg).has_target
    found: dict[Photo, dict[View, None]] = {}
    for names, views, wanted in (
        (cfg.DATASETS.TRAIN, train, keep),
        (cfg.DATASETS.TEST, test, None),
    ):
        for image in training_images(names, wanted).dicts if names else ():
            photo = Photo(image["file_name"], image.get("width"), image.get("height"))
            found.setdefault(photo, {}).update(dict.fromkeys(views))
    return {photo: list(views) for photo, views in found.items()}


class Tokens(torch.utils.data.Dataset):
    """An item brings the tokens of one image's views into the cache.

    Args:
        cfg: of the detector, with a cache.
        views: see ``views_of``.
    """

    def __init__(self, cfg: CfgNode, views: dict[Photo, list[View]]) -> None:
        self.cfg = cfg
        self.views = list(views.items())

    def __getstate__(self) -> dict:
        return {"cfg": self.cfg, "views": self.views}  # a worker builds a pyramid of its own

    def __len__(self) -> int:
        return len(self.views)

    @functools.cached_property
    def pyramid(self) -> torch.nn.Module:
        """The detector's backbone with the cache, built when it is first asked for."""
        return build_backbone(self.cfg).to(self.cfg.MODEL.DEVICE)

    def __getitem__(self, index: int) -> tuple[int, int, int, str | None]:
        """Compute an image's tokens where they are not there.

        Returns:
            Views computed, views that were there, their bytes, and what is wrong, if anything.
        """
        photo, views = self.views[index]
        net = self.pyramid.net
        mean, std = (
            torch.tensor(values, device=self.cfg.MODEL.DEVICE).view(3, 1, 1)
            for values in (self.cfg.MODEL.PIXEL_MEAN, self.cfg.MODEL.PIXEL_STD)
        )
        record = {key: value for key, value in photo._asdict().items() if value is not None}
        try:
            pixels = read_pixels(record, self.cfg.INPUT.FORMAT)
        except UserError as error:
            return 0, 0, 0, str(error)
        computed = size = 0
        for view in views:
            image = (view(pixels).to(mean.device) - mean) / std
            padded = ImageList.from_tensors(
                [image], padding_constraints=self.pyramid.padding_constraints
            ).tensor
            tokens = net.cache.file(padded[0])
            if not tokens.is_file():
                net(padded)
                computed += 1
            size += tokens.stat().st_size
        return computed, len(views) - computed, size, None


def fill_cache(cfg: CfgNode, workers: int | None = None) -> Filled:
    """Bring the tokens of all of a detector's images into ``MODEL.FROZEN_VIT.CACHE_DIR``.

    What is there is not computed again. Each process computes with one thread, so that their
    number changes no bit.

    Args:
        cfg: of the detector; its data sets are registered.
        workers: processes, 0 for none; None for one a core on a CPU, and none with a GPU.

    Returns:
        How many views were computed or there, and which images cannot be read, or have another
        size than the data set says.

    Raises:
        UserError: no cache is named, or the backbone cannot be built.
    """
    if "frozen_vit" not in cfg.MODEL.BACKBONE.NAME or not cfg.MODEL.FROZEN_VIT.CACHE_DIR:
        raise UserError(
            "there is no cache to fill: take a config with a frozen ViT, such as "
            "configs/promerge_cascade_vit_small.yaml, and a MODEL.FROZEN_VIT.CACHE_DIR"
        )
    started = time.perf_counter()
    tokens = Tokens(cfg, views_of(cfg))
    _ = tokens.pyramid  # what is wrong with the config is said before workers start
    if workers is None:
        workers = choose_workers(len(tokens)) if cfg.MODEL.DEVICE.startswith("cpu") else 0
    filled = Filled()
    loader = torch.utils.data.DataLoader(
        tokens,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,  # threads do not survive a fork
    )
    with one_thread():
        bar = progress(loader, total=len(tokens), desc="tokens", unit="image")
        for (photo, _), (computed, there, size, problem) in zip(tokens.views, bar, strict=True):
            filled.images += 1
            filled.computed += computed
            filled.there += there
            filled.bytes += size
            if problem is not None:
                filled.failures[photo.file_name] = problem
    filled.seconds = time.perf_counter() - started
    return filled
