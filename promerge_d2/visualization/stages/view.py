"""An image on its way through a labeler, and the panels that all labelers share.

A panel is a function of a ``View`` and of the axes that it draws on; it returns a ``Caption``, or
None where its stage was not reached. Axes count the pixels of the panel's photograph, from its
upper left corner.

Shape letters: C channels, H and W rows and columns of the patch grid, M masks; h and w of the
panel's photograph in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.patheffects import withStroke
from pycocotools import mask as mask_utils

from promerge_d2.labeler import GridConfig, Labeler, LabelResult
from promerge_d2.labeler.refine.resize import resize_mask, upsample
from promerge_d2.labeler.similarity import l2_normalize
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import ImageLike, load_image, resize_image
from promerge_d2.visualization.overlay import draw_masks

SIDE = 440  # pixels of the longer side of a panel's photograph
ALONE = 3  # masks drawn one by one, by row and by column
_THIN = 40  # of the shorter side, at least: a panorama is drawn wider than it is
_CROWDED = 12  # masks that can be told from each other on one photograph


@dataclass(frozen=True)
class Caption:
    """The words below a panel.

    Attributes:
        found: the settings that act here, and the outcome.
        shows: how to read the picture, and what to turn.
        colors: what the colour scale below the picture explains, or None.
        threshold: marked on the scale, or None.
    """

    found: str
    shows: str
    colors: ScalarMappable | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class View:
    """An image and what a labeler's stages made of it.

    Attributes:
        name: the image's, for the heading.
        photo: (h, w, 3) uint8 RGB, the upright photograph at the size of a panel.
        labeler: whose stages are shown.
        preset: the name of its preset.
        features: (C, H, W) raw float32.
        stages: of ``labeler.find_masks``.
        result: of ``labeler.postprocess``.
    """

    name: str
    photo: np.ndarray
    labeler: Labeler
    preset: str
    features: torch.Tensor
    stages: Any
    result: LabelResult

    @property
    def config(self) -> Any:
        """The labeler's settings."""
        return self.labeler.config

    def settings(self, *names: str) -> str:
        """Name settings with their values, as in ``tau_b = 0.2, stride = 4``."""
        return ", ".join(f"{name} = {getattr(self.config, name)}" for name in names)

    def show(self, axes: Axes, picture: np.ndarray, **options: Any) -> Any:
        """Stretch a picture, of the photograph or of the grid, over the panel."""
        height, width = self.photo.shape[:2]
        return axes.imshow(
            picture, extent=(0, width, height, 0), interpolation="nearest", **options
        )

    def show_masks(self, axes: Axes, masks: np.ndarray) -> None:
        """Draw masks (M, H, W) bool of the grid over the photograph."""
        self.show(axes, draw_masks(self.photo, upsample(masks, *self.photo.shape[:2])))

    def show_heat(
        self, axes: Axes, values: np.ndarray, low: float = 0, high: float = 1
    ) -> ScalarMappable:
        """Draw values (H, W) from ``low`` (dark) to ``high`` (bright) over a faint photograph."""
        self.show(axes, cv2.cvtColor(self.photo, cv2.COLOR_RGB2GRAY), cmap="gray", vmin=0, vmax=255)
        return self.show(axes, values, cmap="viridis", vmin=low, vmax=high, alpha=0.7)

    def outline(self, axes: Axes, mask: np.ndarray, width: float = 1.5) -> None:
        """Outline a mask (H, W) bool of the grid in white."""
        if mask.any():
            (large,) = upsample(mask[None], *self.photo.shape[:2])
            rows, columns = (np.arange(-1, side + 1) + 0.5 for side in large.shape)
            padded = np.pad(large, 1)
            axes.contour(columns, rows, padded, [0.5], colors="white", linewidths=width)

    def show_one_by_one(
        self, axes: Axes, masks: Sequence[np.ndarray] | np.ndarray, words: Sequence[str]
    ) -> None:
        """Draw up to ``ALONE`` squared masks, each (h, w) bool, alone on a faint photograph."""
        faint = cv2.cvtColor(self.photo, cv2.COLOR_RGB2GRAY)[..., None] // 3 + 150
        size = 1 / ALONE - 0.006
        for index, (mask, text) in enumerate(zip(masks[: ALONE**2], words, strict=False)):
            row, column = divmod(index, ALONE)
            tile = axes.inset_axes((column / ALONE, 1 - row / ALONE - size, size, size))
            tile.set_axis_off()
            alone = np.where(mask[..., None], self.photo, faint).astype(np.uint8)
            tile.imshow(alone, interpolation="antialiased", aspect="auto")
            rim = [withStroke(linewidth=2, foreground="black")]  # to be read on any ground
            words_of_tile: dict[str, Any] = {"transform": tile.transAxes, "path_effects": rim}
            tile.text(0.03, 0.03, text, color="white", fontsize=7, va="bottom", **words_of_tile)

    def masks(self, records: Sequence[dict]) -> list[np.ndarray]:
        """Decode the masks (h, w) bool of records, at the size of the panel."""
        return [
            resize_mask(mask_utils.decode(r["segmentation"]).astype(bool), *self.photo.shape[:2])
            for r in records
        ]


Panel = tuple[str, Callable[[View, Axes], Caption | None]]
"""A title, and what draws below it."""


def view_stages(labeler: Labeler, preset: str, image: ImageLike, name: str) -> View:
    """Take an image through a labeler and keep what its stages made.

    Args:
        labeler: finds the masks.
        preset: the name of its preset, for the heading.
        image: see ``load_image``.
        name: the image's, for the heading.

    Returns:
        What the panels draw.

    Raises:
        ImageError: the image cannot be read.
        UserError: the labeler works with tiles.
    """
    if labeler.tile_count(labeler.config):
        raise UserError("the stages are shown of the whole photograph: leave out the setting tiles")
    pixels = load_image(image, labeler.config.apply_exif)
    (output,) = labeler.forward([labeler.processor.preprocess(pixels)])
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    photo = resize_image(pixels, *(max(_THIN, round(side * scale)) for side in (height, width)))
    return View(
        name,
        photo,
        labeler,
        preset,
        output.features[0],
        labeler.find_masks(output, labeler.config),
        labeler.postprocess(output, labeler.config),
    )


def photograph(view: View, axes: Axes) -> Caption:
    """Draw the photograph."""
    view.show(axes, view.photo)
    height, width = view.result.height, view.result.width
    rows, columns = view.features.shape[1:]
    patch = view.labeler.extractor.backbone.patch
    return Caption(
        f"grid = {rows}x{columns}, apply_exif = {view.config.apply_exif}: {width}x{height} pixels",
        f"The image is resized to the grid, {patch} pixels a patch. What is smaller than two "
        "patches is hardly seen: raise grid for small objects.",
    )


def features(view: View, axes: Axes) -> Caption:
    """Draw the features as colours."""
    view.show(axes, pca_colors(l2_normalize(view.features).numpy()))
    extractor = view.labeler.extractor
    return Caption(
        f"backbone = {extractor.backbone.name}, facet = {extractor.facet}, "
        f"center = {'on' if extractor.center else 'off'}: {len(view.features)} channels",
        "Three principal components as red, green and blue: patches of like colour are alike. "
        "What has the colour of its surroundings cannot be told from them.",
    )


def grid_masks(view: View, axes: Axes) -> Caption | None:
    """Draw the masks of the grid."""
    masks = view.stages.merged
    if masks is None:
        return None
    view.show_masks(axes, masks)
    shared = {field.name for field in dataclasses.fields(GridConfig)}
    own = [f.name for f in dataclasses.fields(view.config) if f.name not in shared]
    return Caption(
        f"{view.settings(*own)}: {counted(masks, 'mask')}",
        "The masks on the patch grid, before refinement.",
    )


def refined(view: View, axes: Axes) -> Caption | None:
    """Draw the final masks."""
    before, after = view.stages.merged, view.result.records
    if before is None or not len(before):
        return None
    drawn = after if len(after) <= _CROWDED else after[: _CROWDED // 2]
    view.show(axes, draw_masks(view.photo, view.masks(drawn)))
    return Caption(
        f"{view.settings('refine', 'refine_min_iou')}: {len(after)} of {counted(before, 'mask')} "
        f"kept{score_range(after)}",
        "The final masks, drawn along the edges of the image. One that changes to an IoU below "
        "refine_min_iou is dropped; the labeler regions keeps it unrefined."
        + ("" if drawn is after else f" The first {len(drawn)} are drawn."),
    )


OPENING: tuple[Panel, ...] = (("Photograph", photograph), ("Features", features))
REFINED: Panel = ("Refined", refined)
COMMON: tuple[Panel, ...] = (*OPENING, ("Masks", grid_masks), REFINED)
"""The panels of a labeler that has none of its own."""


def score_range(records: Sequence[dict]) -> str:
    """Name the scores of records, as the end of a sentence."""
    if not records:
        return ""
    scores = [record["score"] for record in records]
    if max(scores) == min(scores):
        return f", each scores {scores[0]:.2f}: none ranks above another"
    return f", scores from {max(scores):.2f} to {min(scores):.2f}"


def counted(things: Sized, name: str) -> str:
    """Count things in words: ``1 mask``, ``2 masks``."""
    return f"{len(things)} {name}" + ("" if len(things) == 1 else "s")


def pca_colors(features: np.ndarray) -> np.ndarray:
    """Turn the three strongest principal components into red, green and blue.

    A component's sign is arbitrary: here it is such that the border of the grid is the darker
    part. Each is stretched between its first and its 99th percentile; one that does not vary is
    mid-grey.

    Args:
        features: (C, H, W) float32 of norm 1 or less.

    Returns:
        (H, W, 3) uint8.
    """
    channels, height, width = features.shape
    flat = features.reshape(channels, -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    _, vectors = np.linalg.eigh(flat @ flat.T)  # ascending
    components = (vectors[:, ::-1][:, :3].T @ flat).reshape(-1, height, width)
    border = np.ones((height, width), bool)
    border[1:-1, 1:-1] = False
    picture = np.full((height, width, 3), 128, np.uint8)
    for index, component in enumerate(components):
        if np.abs(component).max() <= 1e-6:
            continue
        if component[border].mean() > 0:
            component = -component
        low, high = np.percentile(component, (1, 99))
        stretched = (component - low) / max(high - low, 1e-6)
        picture[..., index] = np.round(255 * stretched.clip(0, 1))
    return picture
