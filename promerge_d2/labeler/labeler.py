"""What all labelers share: the way of an image through them, cut where processes may change.

``decode`` needs no network, ``extract`` nothing but the network, ``finish`` neither the network
nor the file; so an image's three parts may run in three processes.

Shape letters: N images, C channels, H and W rows and columns of the patch grid, M masks.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from pycocotools import mask as mask_utils

import promerge_d2
from promerge_d2.features import FeatureExtractor
from promerge_d2.labeler.config import GridConfig
from promerge_d2.labeler.refinement import (
    check_refiner,
    drop_fragments,
    refine_masks,
    resize_mask,
)
from promerge_d2.labeler.scoring import suppress
from promerge_d2.labeler.tiles import on_photograph, tile_windows
from promerge_d2.utils.image import ImageLike, load_image, resize_image


@dataclass
class Decoded:
    """An image as the later steps need it; the photograph itself is let go.

    Attributes:
        height, width: of the upright photograph, in pixels.
        squashed: (H * patch, W * patch, 3) uint8 RGB, for the network.
        working: (H * pixels_per_patch, W * pixels_per_patch, 3) uint8 RGB, for the refiner.
        seconds: wall-clock time by stage so far.
        tiles: parts of the photograph like ``squashed``, see ``tile_windows``.
    """

    height: int
    width: int
    squashed: np.ndarray
    working: np.ndarray
    seconds: dict[str, float]
    tiles: Sequence[np.ndarray] = ()


@dataclass
class Prepared:
    """An image that is done with the network.

    Attributes:
        height, width, working, seconds: as of ``Decoded``.
        features: (C, H, W) raw float32 on the CPU.
        tiles: (T, C, H, W) the same of the tiles; None where there are none.
    """

    height: int
    width: int
    working: np.ndarray
    seconds: dict[str, float]
    features: torch.Tensor
    tiles: torch.Tensor | None = None


@dataclass
class LabelResult:
    """The masks of one image.

    Attributes:
        height, width: of the upright image, in pixels.
        records: see ``Labeler.__call__``.
        reason: a key of ``Labeler.reasons`` when there are no records, else None.
        seconds: wall-clock time by stage: ``decoding``, ``features``, ``masks``, ``refinement``,
            ``encoding``.
    """

    height: int
    width: int
    records: list[dict] = field(default_factory=list)
    reason: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Steps(Protocol):
    """The parts of a labeler's work that need no network: any process can do them.

    Attributes:
        apply_exif: whether photographs are turned upright.
    """

    apply_exif: bool

    def decode(self, image: ImageLike) -> Any:
        """Read an image, for ``MaskSource.launch``."""
        ...

    def finish(self, prepared: Any) -> LabelResult:
        """Masks from what ``MaskSource.launch`` gave."""
        ...


class MaskSource(Protocol):
    """What the label engine runs: a ``Labeler``, or a trained detector.

    Attributes:
        name: in label files.
        title: in sentences.
        reasons: why an image has no mask, by the key in label files.
        steps: see there.
        device: where the network is.
        handed_on: bytes that ``launch`` gives for an image, for ``Steps.finish``.
    """

    name: str
    title: str
    reasons: dict[str, str]

    @property
    def steps(self) -> Steps: ...  # noqa: D102 - above

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    @property
    def handed_on(self) -> int: ...  # noqa: D102

    def weights(self) -> Iterator[torch.Tensor]:
        """All that a process with a network of its own shares with this one."""
        ...

    def to(self, device: str | torch.device) -> None:
        """Move the network."""
        ...

    def launch(self, images: Sequence[Any]) -> Callable[[], list[Any]]:
        """Start the network on images that ``Steps.decode`` gave.

        Returns:
            A function that waits and gives, for each image, what ``Steps.finish`` takes.
        """
        ...

    def describe(self, preset: str) -> dict:
        """Everything that the masks follow from, besides the images; ``info`` of a label file.

        Args:
            preset: name of the settings, for the record.
        """
        ...


class GridMasks(Protocol):
    """What a labeler's grid stage gives.

    Attributes:
        merged: (M, H, W) bool, final masks on the grid in the order of the records, or None.
        scores: (M,) in [0, 1], or None where all masks count alike.
        reason: a key of ``Labeler.reasons`` when there are none, else None.
    """

    merged: np.ndarray | None
    scores: np.ndarray | None
    reason: str | None


class Labeler(ABC):
    """Training-free instance masks from patch features; a subclass says how they are found.

    Args:
        extractor: gives patch features; its backbone, weights and facet decide what is alike.
        config: thresholds and sizes, an instance of ``config_class``; None takes the released.

    Raises:
        UserError: the refiner asked for cannot run here.
    """

    name: ClassVar[str]  # in the registry and in label files
    title: ClassVar[str]  # in sentences
    config_class: ClassVar[type[GridConfig]]
    # why an image has no mask
    reasons: ClassVar[dict[str, str]] = {
        "all_rejected_by_refinement": "refinement changed every mask beyond recognition"
    }

    def __init__(self, extractor: FeatureExtractor, config: GridConfig | None = None) -> None:
        self.extractor = extractor
        self.config = config or self.config_class()
        check_refiner(self.config.refine)

    @classmethod
    def from_preset(
        cls,
        preset: str = "release",
        backbone: str = "dino_vitb8",
        weights: str | os.PathLike | None = None,
        facet: str | None = None,
        center: bool | None = None,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        compiled: bool = False,
        **overrides: object,
    ) -> Labeler:
        """Build a labeler by names.

        Args:
            preset: a name of ``config_class.presets``.
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

        Raises:
            UserError: unknown names, bad values, weights that are missing or wrong.
        """
        config = cls.config_class.from_preset(preset, **overrides)
        check_refiner(config.refine)  # before the weights are fetched
        extractor = FeatureExtractor.from_name(
            backbone, weights, facet, center, device, precision, compiled
        )
        return cls(extractor, config)

    @staticmethod
    @abstractmethod
    def grid_masks(features: torch.Tensor, config: GridConfig) -> GridMasks:
        """Find masks on the patch grid.

        Args:
            features: (C, H, W) raw float32 features.
            config: thresholds; ``config.grid`` is not used.
        """

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
        """Like calling, with the image's size and the reason when there are no masks."""
        (prepared,) = self.extract([self.decode(image)])
        return self.finish(prepared, self.config)

    def label_batch(
        self, images: Iterable[ImageLike], batch_size: int = 1
    ) -> Iterator[LabelResult]:
        """Label images lazily, in their order, ``batch_size`` at a time.

        On a CPU the masks are those of single calls; see ``FeatureExtractor.features``.
        """
        images = iter(images)
        while batch := [self.decode(image) for image in itertools.islice(images, batch_size)]:
            for prepared in self.extract(batch):
                yield self.finish(prepared, self.config)

    @property
    def steps(self) -> GridSteps:
        """See ``MaskSource``."""
        return GridSteps(type(self), self.config, self.extractor.backbone.patch)

    @property
    def device(self) -> torch.device:
        """See ``MaskSource``."""
        return self.extractor.device

    @property
    def handed_on(self) -> int:
        """See ``MaskSource``; raw float32 features."""
        rows, columns = self.config.grid
        maps = 1 + len(tile_windows(rows, columns, self.config.tiles))
        return 4 * maps * rows * columns * self.extractor.backbone.width

    def weights(self) -> Iterator[torch.Tensor]:
        """See ``MaskSource``."""
        return self.extractor.parameters()

    def to(self, device: str | torch.device) -> None:
        """See ``MaskSource``."""
        self.extractor.to(device)

    def describe(self, preset: str) -> dict:
        """See ``MaskSource``."""
        extractor = self.extractor
        backbone = extractor.backbone
        return {
            "description": f"{self.title} pseudo-labels; features: {backbone.training}",
            "version": promerge_d2.__version__,
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

    def decode(self, image: ImageLike) -> Decoded:
        """The first part of the work, see ``decode``."""
        return self.steps.decode(image)

    def extract(self, images: Sequence[Decoded]) -> list[Prepared]:
        """The second part of the work: the network.

        Args:
            images: N decoded images, at least one.

        Returns:
            N images with their features; the batch's time is shared out evenly.
        """
        return self.launch(images)()

    def launch(self, images: Sequence[Decoded]) -> Callable[[], list[Prepared]]:
        """Start ``extract``; the function returned waits and gives what it gives."""
        started = time.perf_counter()
        pictures = [[image.squashed, *image.tiles] for image in images]
        shapes: dict[tuple[int, ...], list[int]] = {}  # a batch is of one shape
        for index, image in enumerate(images):
            shapes.setdefault(image.squashed.shape, []).append(index)
        waits = [
            (indices, self.extractor.launch([p for index in indices for p in pictures[index]]))
            for indices in shapes.values()
        ]
        launched = time.perf_counter() - started

        def wait() -> list[Prepared]:
            started = time.perf_counter()
            found: dict[int, list[torch.Tensor]] = {}
            for indices, wait_for_features in waits:
                maps = iter(wait_for_features())
                for index in indices:
                    found[index] = list(itertools.islice(maps, len(pictures[index])))
            seconds = (launched + time.perf_counter() - started) / len(images)
            return [
                Prepared(
                    image.height,
                    image.width,
                    image.working,
                    {**image.seconds, "features": seconds},
                    found[index][0],
                    torch.stack(found[index][1:]) if image.tiles else None,
                )
                for index, image in enumerate(images)
            ]

        return wait

    @classmethod
    def finish(cls, prepared: Prepared, config: GridConfig) -> LabelResult:
        """The third part of the work: masks on the grid, refinement, records.

        Args:
            prepared: of ``extract``.
            config: the labeler's.

        Returns:
            The image's masks.
        """
        started = time.perf_counter()
        tiles = () if prepared.tiles is None else (prepared.tiles,)
        stages = cls.grid_masks(prepared.features, config, *tiles)
        found = time.perf_counter()
        result = LabelResult(
            prepared.height,
            prepared.width,
            reason=stages.reason,
            seconds={**prepared.seconds, "masks": found - started},
        )
        if stages.reason:
            return result
        masks, kept = cls.refine(prepared.working, stages.merged, config)
        scores = np.ones(len(masks)) if stages.scores is None else stages.scores[kept]
        masks, scores = clean_masks(masks, scores, config)
        masks = [resize_mask(mask, prepared.height, prepared.width) for mask in masks]
        refined = time.perf_counter()
        result.records = [
            mask_record(mask, float(score))
            for mask, score in zip(masks, scores, strict=True)
            if mask.any()
        ]
        result.seconds["refinement"] = refined - found
        result.seconds["encoding"] = time.perf_counter() - refined
        if not result.records:
            result.reason = "all_rejected_by_refinement"
        return result

    @staticmethod
    def refine(
        image: np.ndarray, masks: np.ndarray, config: GridConfig
    ) -> tuple[np.ndarray, np.ndarray]:
        """Refine the masks of an image.

        Args:
            image: (h, w, 3) uint8 RGB, the working image.
            masks: (M, H, W) bool on the patch grid, M at least 1.
            config: the labeler's.

        Returns:
            Kept masks (K, h, w) bool and their indices (K,) in ``masks``.
        """
        return refine_masks(
            image,
            masks,
            config.refine,
            config.refine_min_iou,
            config.upsampling,
            config.unconfirmed,
        )


@dataclass(frozen=True)
class GridSteps:
    """See ``Steps``."""

    labeler: type[Labeler]
    config: GridConfig
    patch: int

    @property
    def apply_exif(self) -> bool:
        """See ``Steps``."""
        return self.config.apply_exif

    def decode(self, image: ImageLike) -> Decoded:
        """See the function ``decode``."""
        return decode(image, self.patch, self.config)

    def finish(self, prepared: Prepared) -> LabelResult:
        """See ``Labeler.finish``."""
        return self.labeler.finish(prepared, self.config)


def clean_masks(
    masks: np.ndarray, scores: np.ndarray, config: GridConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Take small fragments off refined masks, and drop masks that overlap an earlier one.

    Args:
        masks: (M, h, w) bool.
        scores: (M,).
        config: its ``min_fragment`` and ``max_iou``.

    Returns:
        Kept masks (K, h, w) bool and their scores (K,), in the order given.
    """
    if config.min_fragment > 0 and len(masks):
        masks = drop_fragments(masks, config.min_fragment)
    if config.max_iou < 1 and len(masks):
        # in the order given, on every other pixel: overlaps need no more
        kept = suppress(masks[:, ::2, ::2], np.zeros(len(masks)), config.max_iou, len(masks))
        masks, scores = masks[kept], scores[kept]
    return masks, scores


def decode(image: ImageLike, patch: int, config: GridConfig) -> Decoded:
    """Read an image and resize it for the network and for the refiner.

    JPEG's draft mode (decoding at half size and less) is not used: it changes the pixels.

    Args:
        image: a file's path, a PIL image, or an RGB array (H, W, 3) uint8.
        patch: side of the network's patch, in pixels.
        config: the labeler's.

    Raises:
        ImageError: the image cannot be read.
    """
    started = time.perf_counter()
    pixels = load_image(image, config.apply_exif)
    height, width = pixels.shape[:2]
    rows, columns = config.grid_for(height, width)
    squashed = resize_image(pixels, rows * patch, columns * patch)
    side = config.pixels_per_patch
    working = squashed if side == patch else resize_image(pixels, rows * side, columns * side)
    canvas = (config.tiles * rows, config.tiles * columns)
    tiles = [
        resize_image(pixels[on_photograph(window, canvas, height, width)], *squashed.shape[:2])
        for window in tile_windows(rows, columns, config.tiles)
    ]
    seconds = {"decoding": time.perf_counter() - started}
    return Decoded(height, width, squashed, working, seconds, tiles)


def mask_record(mask: np.ndarray, score: float = 1.0) -> dict:
    """The record of a mask.

    Example: the mask ``[[0, 1], [0, 1]]`` has area 2 and bbox ``[1.0, 0.0, 1.0, 2.0]``.

    Args:
        mask: (h, w) bool, not empty.
        score: how likely it is an object, in [0, 1].

    Returns:
        See ``Labeler.__call__``.
    """
    return rle_record(mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8)), score)


def rle_record(rle: dict, score: float) -> dict:
    """The record of a compressed mask (``counts`` as bytes), see ``mask_record``."""
    return {
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
        "area": int(mask_utils.area(rle)),
        "bbox": [float(side) for side in mask_utils.toBbox(rle)],
        "score": score,
    }
