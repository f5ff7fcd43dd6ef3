"""What all labelers share: the way of an image through them, cut where processes may change.

``preprocess`` needs no network, ``forward`` nothing but the network, ``postprocess`` neither the
network nor the file; so an image's three parts may run in three processes.

Shape letters: N images, V views of an image (the whole, then its tiles), C channels, H and W rows
and columns of the patch grid, M masks, h and w of the working image.
"""

from __future__ import annotations

import dataclasses
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch

from promerge_d2.coco.records import rle_record
from promerge_d2.features import FeatureExtractor
from promerge_d2.features.extractor import check_device
from promerge_d2.labeler.config import GridConfig
from promerge_d2.labeler.mask_generator import LabelResult
from promerge_d2.labeler.refine import Refiner, check_refiner, refine_masks
from promerge_d2.labeler.refine.resize import upsample
from promerge_d2.labeler.refine.runs import resize_to_rle
from promerge_d2.utils.image import ImageLike, load_image, resize_image
from promerge_d2.version import __version__

ConfigT = TypeVar("ConfigT", bound=GridConfig)


@dataclass
class PreprocessedImage:
    """An image as the later steps need it; the photograph itself is let go.

    Attributes:
        height, width: of the upright photograph, in pixels.
        views: V pictures (H * patch, W * patch, 3) uint8 RGB for the network, the first of the
            whole photograph.
        working_image: (H * pixels_per_patch, W * pixels_per_patch, 3) uint8 RGB, for the refiner.
        seconds: wall-clock time by stage so far.
    """

    height: int
    width: int
    views: Sequence[np.ndarray]
    working_image: np.ndarray
    seconds: dict[str, float]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of a view, see ``Processor.preprocess``."""
        return self.views[0].shape


@dataclass
class ImageFeatures:
    """An image that is done with the network.

    Attributes:
        height, width, working_image, seconds: as of ``PreprocessedImage``.
        features: (V, C, H, W) raw float32 on the CPU.
    """

    height: int
    width: int
    working_image: np.ndarray
    seconds: dict[str, float]
    features: torch.Tensor


@dataclass
class GridMasks:
    """What a labeler found on the patch grid; subclasses add what their stages made.

    Attributes:
        merged: (M, H, W) bool, final masks in the order of the records, or None.
        scores: (M,) in [0, 1], or None where all masks count alike.
        reason: a key of ``Labeler.reasons`` when there are none, else None.
    """

    merged: np.ndarray | None = None
    scores: np.ndarray | None = None
    reason: str | None = None


class Labeler(ABC, Generic[ConfigT]):
    """Training-free instance masks from patch features; a subclass says how they are found.

    It is a ``MaskGenerator``.

    Args:
        extractor: gives patch features; its backbone, weights and facet decide what is alike.
        config: thresholds and sizes, an instance of ``config_class``; None takes its defaults.

    Raises:
        UserError: the refiner or a device asked for cannot run here.
    """

    name: ClassVar[str]  # in label files
    title: ClassVar[str]  # in sentences
    config_class: type[ConfigT]
    # why an image has no mask, and what to turn; the only place that says so
    reasons: ClassVar[dict[str, str]] = {
        "all_rejected_by_refinement": "refinement changed every mask beyond recognition; lower "
        "refine_min_iou, or refine=none"
    }

    def __init__(self, extractor: FeatureExtractor, config: ConfigT | None = None) -> None:
        self.extractor = extractor
        self.config: ConfigT = config or self.config_class()
        _check_stages(self.config)

    @classmethod
    def from_preset(
        cls,
        preset: str | None = None,
        backbone: str = "dino_vitb8",
        weights: str | os.PathLike | None = None,
        facet: str | None = None,
        center: bool | None = None,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        compiled: bool = False,
        **overrides: object,
    ) -> Labeler[ConfigT]:
        """Build a labeler by names.

        Args:
            preset: a name of ``config_class.presets``; None takes the first.
            backbone: a name of the registry; its weights are fetched on first use.
            weights: a local weights file instead.
            facet: ``"key"`` (ProMerge's), ``"query"``, ``"value"`` or ``"token"``; None takes
                the first that the backbone has: of a ViT the key.
            center: subtract the image's mean feature; None as the backbone's entry says.
            device: where features are computed.
            precision: see ``FeatureExtractor``.
            compiled: see ``FeatureExtractor``.
            **overrides: settings of ``config_class``, such as ``grid=34`` (the cost of features
                grows with its square) or ``refine="none"``.

        Returns:
            The labeler, its weights loaded.

        Raises:
            UserError: unknown names, bad values, weights that are missing or wrong.
        """
        config = cls.config_class.from_preset(preset, **overrides)
        _check_stages(config)  # before the weights are fetched
        extractor = FeatureExtractor.from_name(
            backbone, weights, facet, center, device, precision, compiled
        )
        return cls(extractor, config)

    @staticmethod
    @abstractmethod
    def grid_masks(features: torch.Tensor, config: ConfigT) -> GridMasks:
        """Find masks on the patch grid.

        Args:
            features: (V, C, H, W) raw float32 features.
            config: the labeler's; ``config.grid`` is not used.

        Returns:
            The masks, or why there are none.
        """

    @classmethod
    def find_masks(cls, image: ImageFeatures, config: ConfigT) -> GridMasks:
        """Find masks of an image on the patch grid.

        Args:
            image: of ``forward``.
            config: the labeler's.

        Returns:
            ``grid_masks`` of its features; a subclass may look at its working image as well.
        """
        return cls.grid_masks(image.features, config)

    @classmethod
    def tile_count(cls, config: ConfigT) -> int:
        """Count the tiles that ``tiles`` gives.

        Args:
            config: the labeler's.

        Returns:
            0, unless a subclass has tiles.
        """
        return 0

    @classmethod
    def tiles(
        cls, pixels: np.ndarray, rows: int, columns: int, config: ConfigT
    ) -> list[np.ndarray]:
        """Cut out the parts of the photograph that the network sees beside the whole.

        Args:
            pixels: (h, w, 3) uint8 RGB, the upright photograph.
            rows: of the patch grid, H.
            columns: W.
            config: the labeler's.

        Returns:
            ``tile_count`` pictures (h', w', 3) uint8 RGB; none, unless a subclass has tiles.
        """
        return []

    def __call__(self, image: ImageLike) -> list[dict]:
        """Find the objects of one image.

        Args:
            image: a file's path, a PIL image, or an RGB array (H, W, 3) uint8.

        Returns:
            One record an object, in the order of the grid's masks:

            * ``segmentation``: COCO RLE of the upright image, ``{"size": [H, W], "counts": str}``;
            * ``area``: pixels in the mask, int;
            * ``bbox``: ``[x, y, width, height]`` in pixels, floats;
            * ``score``: how likely it is an object, in [0, 1]; 1.0 for labelers that rank no mask
              above another, as the releases.

            Empty when there is none; ``label`` then says why.

        Raises:
            ImageError: the image cannot be read.
        """
        return self.label(image).records

    def label(self, image: ImageLike) -> LabelResult:
        """Find the objects of one image, with its size and the reason when there are none.

        Args:
            image: see ``__call__``.

        Returns:
            The image's masks.

        Raises:
            ImageError: the image cannot be read.
        """
        (output,) = self.forward([self.processor.preprocess(image)])
        return self.processor.postprocess(output)

    @property
    def processor(self) -> GridProcessor:
        """Return the work around the network, see ``MaskGenerator``."""
        return GridProcessor(type(self), self.config, self.extractor.backbone.patch)

    @property
    def device(self) -> torch.device:
        """Return where the network is."""
        return self.extractor.device

    @property
    def output_bytes(self) -> int:
        """Return the bytes of an image's raw float32 features."""
        rows, columns = self.config.grid
        views = 1 + self.tile_count(self.config)
        return 4 * views * rows * columns * self.extractor.backbone.width

    def weights(self) -> Iterator[torch.Tensor]:
        """Iterate over the network's parameters."""
        return self.extractor.parameters()

    def to(self, device: str | torch.device) -> None:
        """Move the network to a device."""
        self.extractor.to(device)

    def describe(self, preset: str) -> dict:
        """Describe what the masks follow from, see ``MaskGenerator.describe``."""
        extractor = self.extractor
        backbone = extractor.backbone
        return {
            "description": f"{self.title} pseudo-labels; features: {backbone.training}",
            "version": __version__,
            "labeler": self.name,
            "preset": preset,
            "settings": dataclasses.asdict(self.config),
            "backbone": {
                "name": backbone.name,
                "training": backbone.training,
                "licence": backbone.licence,
                "weights_sha256": extractor.weights_sha256,
                "facet": extractor.facet,
                "center": extractor.center,
                "precision": extractor.precision,
            },
        }

    def forward(self, images: Sequence[PreprocessedImage]) -> list[ImageFeatures]:
        """Send images through the network.

        Args:
            images: N preprocessed images, at least one.

        Returns:
            N images with their features; the batch's time is shared out evenly.
        """
        return self.start_forward(images)()

    def start_forward(
        self, images: Sequence[PreprocessedImage]
    ) -> Callable[[], list[ImageFeatures]]:
        """Start ``forward``, see ``FeatureExtractor.start``.

        Args:
            images: as of ``forward``.

        Returns:
            A function that waits and gives what ``forward`` gives.
        """
        started = time.perf_counter()
        shapes: dict[tuple[int, ...], list[int]] = {}  # a batch is of one shape
        for index, image in enumerate(images):
            shapes.setdefault(image.views[0].shape, []).append(index)
        waits = [
            (indices, self.extractor.start([v for index in indices for v in images[index].views]))
            for indices in shapes.values()
        ]
        start_seconds = time.perf_counter() - started

        def wait() -> list[ImageFeatures]:
            started = time.perf_counter()
            found: dict[int, torch.Tensor] = {}
            for indices, wait_for_features in waits:
                maps, first = wait_for_features(), 0
                for index in indices:
                    last = first + len(images[index].views)
                    # one map stays as it lies in memory: a copy's mean would round otherwise
                    alone = last == first + 1
                    found[index] = maps[first][None] if alone else torch.stack(maps[first:last])
                    first = last
            seconds = (start_seconds + time.perf_counter() - started) / len(images)
            return [
                ImageFeatures(
                    image.height,
                    image.width,
                    image.working_image,
                    {**image.seconds, "features": seconds},
                    found[index],
                )
                for index, image in enumerate(images)
            ]

        return wait

    @classmethod
    def postprocess(
        cls, image: ImageFeatures, config: ConfigT, refiner: Refiner | None = None
    ) -> LabelResult:
        """Find masks on the grid, refine them, make their records.

        Args:
            image: of ``forward``.
            config: the labeler's.
            refiner: stands in for the one that ``config.refine`` names.

        Returns:
            The image's masks.
        """
        started = time.perf_counter()
        grid = cls.find_masks(image, config)
        seconds = {**image.seconds, "masks": time.perf_counter() - started}
        return cls.make_records(dataclasses.replace(image, seconds=seconds), grid, config, refiner)

    @classmethod
    def make_records(
        cls,
        image: ImageFeatures,
        grid: GridMasks,
        config: ConfigT,
        refiner: Refiner | None = None,
    ) -> LabelResult:
        """Refine masks of the grid and make their records: the second half of ``postprocess``.

        Args:
            image: of ``forward``.
            grid: of ``find_masks``.
            config: the labeler's.
            refiner: stands in for the one that ``config.refine`` names.

        Returns:
            The image's masks.
        """
        found = time.perf_counter()
        result = LabelResult(
            image.height, image.width, reason=grid.reason, seconds=dict(image.seconds)
        )
        if grid.reason or grid.merged is None:
            return result
        masks, kept = cls.refine(image.working_image, grid.merged, config, refiner)
        scores = np.ones(len(masks)) if grid.scores is None else grid.scores[kept]
        refined = time.perf_counter()
        for mask, score in zip(masks, scores, strict=True):
            record = rle_record(resize_to_rle(mask, image.height, image.width), float(score))
            if record["area"]:
                result.records.append(record)
        result.seconds["refinement"] = refined - found
        result.seconds["encoding"] = time.perf_counter() - refined
        if not result.records:
            result.reason = "all_rejected_by_refinement"
        return result

    @staticmethod
    def refine(
        image: np.ndarray, masks: np.ndarray, config: ConfigT, refiner: Refiner | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Refine the masks of an image as the release does, dropping those not confirmed.

        Args:
            image: (h, w, 3) uint8 RGB, the working image.
            masks: (M, H, W) bool on the patch grid, M at least 1.
            config: the labeler's.
            refiner: stands in for the one that ``config.refine`` names.

        Returns:
            Kept masks (K, h, w) bool and their indices (K,) in ``masks``.
        """
        refined, confirmed = refine_masks(
            image,
            upsample(masks, *image.shape[:2]),
            refiner or config.refine,
            config.refine_min_iou,
            config.refine_device,
        )
        return refined[confirmed], np.flatnonzero(confirmed)


@dataclass(frozen=True)
class GridProcessor:
    """A labeler's work around the network: the ``Processor`` of every labeler.

    Attributes:
        labeler: its class.
        config: its settings.
        patch: side of the network's patch, in pixels.
    """

    labeler: type[Labeler]
    config: GridConfig
    patch: int

    @property
    def apply_exif(self) -> bool:
        """Return whether photographs are turned upright."""
        return self.config.apply_exif

    @property
    def needs_gpu(self) -> bool:
        """Return whether masks are found or refined on a GPU."""
        return any(device.startswith("cuda") for device in self.config.devices)

    def preprocess(self, image: ImageLike) -> PreprocessedImage:
        """Read an image and resize it for the network and for the refiner.

        JPEG's draft mode (decoding at half size and less) is not used: it changes the pixels.

        Args:
            image: a file's path, a PIL image, or an RGB array (H, W, 3) uint8.

        Returns:
            What the network and the refiner see.

        Raises:
            ImageError: the image cannot be read.
        """
        started = time.perf_counter()
        config, patch = self.config, self.patch
        pixels = load_image(image, config.apply_exif)
        height, width = pixels.shape[:2]
        rows, columns = config.grid_for(height, width)
        whole = resize_image(pixels, rows * patch, columns * patch)
        side = config.pixels_per_patch
        working = whole if side == patch else resize_image(pixels, rows * side, columns * side)
        tiles = self.labeler.tiles(pixels, rows, columns, config)
        views = [whole, *(resize_image(tile, *whole.shape[:2]) for tile in tiles)]
        seconds = {"decoding": time.perf_counter() - started}
        return PreprocessedImage(height, width, views, working, seconds)

    def postprocess(self, output: ImageFeatures) -> LabelResult:
        """Make masks of an image, see ``Labeler.postprocess``."""
        return self.labeler.postprocess(output, self.config)


def _check_stages(config: GridConfig) -> None:
    """Check that the stages can run where the settings say; ``UserError`` otherwise."""
    check_refiner(config.refine, config.refine_device)
    for device in config.devices:
        check_device(device)
