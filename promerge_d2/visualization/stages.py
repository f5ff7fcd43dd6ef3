"""One sheet an image that shows what each of a labeler's stages made, and what decided it.

A panel is a function of a ``View``, listed in ``PANELS``; it returns None when its stage was not
reached. To draw one more thing, write one more function and list it.

Shape letters: C channels, H and W rows and columns of the patch grid, K prompts, M masks; h and w
of the panels' pictures in pixels.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_utils

from promerge_d2.labeler import Labeler, LabelResult
from promerge_d2.labeler.promerge.filtering import mean_feature, mean_similarities
from promerge_d2.labeler.promerge.prompting import covers_sides, prompt_grid, prompt_masks
from promerge_d2.labeler.refine.resize import resize_mask, upsample
from promerge_d2.labeler.regions.scoring import Frame, resemblance_to_border, score_masks
from promerge_d2.labeler.similarity import l2_normalize
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import ImageLike, load_image, resize_image
from promerge_d2.visualization.overlay import draw_masks

SIDE = 440  # pixels of the longer side of a panel's picture, and of a column
THIN = 40  # of the shorter one, at least: a panorama is drawn wider than it is
GAP = 24
COLUMNS = 5
TILES = 2  # prompts whose affinity is drawn, by row and by column
ALONE = 3  # masks drawn one by one, by row and by column
LISTED = 12  # scores written on the masks
TEXT = 15  # size of the captions
WHITE, PALE, GREY, BLACK = (255,) * 3, (238,) * 3, (110,) * 3, (20,) * 3
RED, GREEN = (235, 40, 40), (40, 200, 70)


@dataclass(frozen=True)
class View:
    """An image on its way through a labeler.

    Attributes:
        name: the image's, for the heading.
        photo: (h, w, 3) uint8 RGB, the upright photograph at the size of a panel.
        labeler: what was asked.
        preset: the name of the labeler's preset.
        features: (C, H, W) raw float32.
        stages: of ``labeler.grid_masks``.
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

    @property
    def panels(self) -> tuple[tuple[str, Callable[[View], Panel | None]], ...]:
        """The panels that tell what the labeler did."""
        return PANELS[self.labeler.name]

    @functools.cached_property
    def centred(self) -> torch.Tensor:
        """(C, H, W) float32 normalised features without their mean, as the tree takes them."""
        return l2_normalize(self.features - self.features.mean(dim=(1, 2), keepdim=True))

    @functools.cached_property
    def prompts(self) -> np.ndarray:
        """(K, 2) int64 (row, column) on the patch grid."""
        return prompt_grid(*self.features.shape[1:], self.config.stride)

    @functools.cached_property
    def affinity(self) -> np.ndarray:
        """(K, H, W) float32, cosines of every patch with every prompt."""
        unit = l2_normalize(self.features)
        at_prompts = unit[:, self.prompts[:, 0], self.prompts[:, 1]]
        return torch.einsum("ck,chw->khw", at_prompts, unit).numpy()

    @functools.cached_property
    def prompted(self) -> np.ndarray:
        """(K, H, W) bool, the mask of every prompt."""
        return prompt_masks(l2_normalize(self.features), self.prompts, self.config.tau_b)

    @functools.cached_property
    def is_background(self) -> np.ndarray:
        """(K,) bool, whether a prompt's mask is a background candidate."""
        return covers_sides(self.prompted, self.config.side_rule)

    def settings(self, *names: str) -> str:
        """Settings with their values, as in ``tau_b = 0.2, stride = 4``."""
        return ", ".join(f"{name} = {getattr(self.config, name)}" for name in names)

    def on_photo(self, masks: Sequence[np.ndarray]) -> np.ndarray:
        """Masks, each (H, W) bool, drawn over the photograph: (h, w, 3) uint8."""
        if not len(masks):
            return self.photo
        return draw_masks(self.photo, upsample(np.asarray(masks), *self.photo.shape[:2]))


@dataclass(frozen=True)
class Scale:
    """The colour scale under a heat map.

    Attributes:
        low, high: the values of its ends.
        mark: the threshold, or None.
    """

    low: float
    high: float
    mark: float | None = None


@dataclass(frozen=True)
class Panel:
    """What one stage made.

    Attributes:
        picture: (h, w, 3) uint8 RGB.
        found: the settings that act here, and the outcome.
        shows: how to read the picture, and what to turn.
        scale: of a heat map.
    """

    picture: np.ndarray
    found: str
    shows: str
    scale: Scale | None = None


def view_stages(labeler: Labeler, preset: str, image: ImageLike, name: str) -> View:
    """Take an image through a labeler and keep what its stages made.

    Args:
        labeler: finds the masks.
        preset: the name of its preset, for the heading.
        image: see ``load_image``.
        name: the image's, for the heading.

    Raises:
        ImageError: the image cannot be read.
        UserError: the labeler works with tiles.
    """
    if labeler.tile_count(labeler.config):
        raise UserError("the stages are shown of the whole photograph: leave out the setting tiles")
    pixels = load_image(image, labeler.config.apply_exif)
    (prepared,) = labeler.forward([labeler.processor.preprocess(pixels)])
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    photo = resize_image(pixels, *(max(THIN, round(side * scale)) for side in (height, width)))
    return View(
        name,
        photo,
        labeler,
        preset,
        prepared.features[0],
        labeler.grid_masks(prepared.features, labeler.config),
        labeler.postprocess(prepared, labeler.config),
    )


# Panels


def photograph(view: View) -> Panel:
    """The photograph."""
    height, width = view.result.height, view.result.width
    rows, columns = view.features.shape[1:]
    patch = view.labeler.extractor.backbone.patch
    return Panel(
        view.photo,
        f"grid = {rows}x{columns}, apply_exif = {view.config.apply_exif}: {width}x{height} pixels",
        f"The image is squashed to the grid, {patch} pixels a patch. What is smaller than two "
        "patches is hardly seen: raise grid for small objects.",
    )


def features(view: View) -> Panel:
    """The features as colours."""
    extractor = view.labeler.extractor
    picture = pca_colors(l2_normalize(view.features).numpy())
    return Panel(
        enlarge(picture, view.photo.shape),
        f"backbone = {extractor.backbone.name}, facet = {extractor.facet}, "
        f"center = {'on' if extractor.center else 'off'}: {len(view.features)} channels",
        "Three principal components as red, green and blue: patches of like colour are alike. "
        "What has the colour of its surroundings cannot be told from them.",
    )


def prompts(view: View) -> Panel:
    """The prompts, by what became of their masks."""
    picture = view.photo // 2 + 64  # faint
    for prompt, background in zip(view.prompts, view.is_background, strict=True):
        center = patch_center(prompt, view.affinity.shape[1:], view.photo.shape)
        cv2.circle(picture, center, 5, BLACK, -1, cv2.LINE_AA)
        cv2.circle(picture, center, 4, RED if background else GREEN, -1, cv2.LINE_AA)
    background = np.count_nonzero(view.is_background)
    return Panel(
        picture,
        f"{view.settings('stride', 'tau_b', 'side_rule')}: {counted(view.prompts, 'prompt')}, "
        f"{background} red, {len(view.prompts) - background} green",
        "Each dot asks which patches are like its own. Red: they cover two sides of the image, a "
        "background candidate. Green: their parts are foreground masks. Lower stride for more "
        "prompts and smaller objects.",
    )


def affinity(view: View) -> Panel:
    """The masks of a few prompts that differ."""
    threshold = view.config.tau_b
    low, high = min(0.0, threshold), 1.0
    picture = np.full_like(view.photo, 255)
    tiles = [np.array_split(np.arange(side), TILES) for side in picture.shape[:2]]
    places = [np.ix_(rows[1:], columns[1:]) for rows in tiles[0] for columns in tiles[1]]
    between = view.affinity[:, view.prompts[:, 0], view.prompts[:, 1]]
    chosen = differing(between, int(view.prompted.sum(axis=(1, 2)).argmax()), len(places))
    for place, index in zip(places, chosen, strict=False):  # a small grid may have fewer prompts
        tile = resize_image(view.photo, *picture[place].shape[:2])
        tile = heat((view.affinity[index] - low) / max(high - low, 1e-9), tile)
        draw_contour(tile, view.prompted[index], 1)
        center = patch_center(view.prompts[index], view.affinity.shape[1:], tile.shape)
        color = RED if view.is_background[index] else GREEN
        cv2.drawMarker(tile, center, BLACK, cv2.MARKER_CROSS, 17, 5)
        cv2.drawMarker(tile, center, color, cv2.MARKER_CROSS, 15, 3)
        picture[place] = tile
    return Panel(
        picture,
        f"{view.settings('tau_b')}: {len(chosen)} of "
        f"{counted(view.prompts, 'prompt')} drawn, unlike one another",
        "Cosine of every patch with the prompt at the cross (red and green as before). Inside the "
        "line it exceeds tau_b: the prompt's mask. Raise tau_b for smaller masks.",
        Scale(low, high, threshold),
    )


def foreground(view: View) -> Panel:
    """Where the foreground masks are."""
    stages = view.stages
    counts = stages.foreground.sum(axis=0)
    most = max(1, counts.max())
    return Panel(
        heat(counts / most, view.photo),
        f"{view.settings('tau_b', 'component_share')}: "
        f"{counted(stages.foreground, 'foreground mask')}, "
        f"{counted(stages.candidates, 'background candidate')}",
        "How many foreground masks a patch is in. An object that is in none is lost here. Lower "
        "component_share to keep smaller parts.",
        Scale(0, most),
    )


def background(view: View) -> Panel | None:
    """The background vote."""
    stages, config = view.stages, view.config
    if not len(stages.foreground):
        return None
    picture = heat(stages.candidates.sum(axis=0) / max(1, len(stages.candidates)), view.photo)
    found = counted(stages.candidates, "background candidate")
    if stages.background is not None:
        draw_contour(picture, stages.background, 2)
        found += f", {stages.background.mean():.0%} of the grid is background"
    elif config.background_filter == "none":
        found += ", not used (background_filter = none)"
    return Panel(
        picture,
        f"{view.settings('background_vote', 'min_background')}: {found}",
        "Share of the candidates that a patch is in. Inside the line it exceeds background_vote: "
        "the background. Raise background_vote for less of it.",
        Scale(0, 1, config.background_vote),
    )


def pruned(view: View) -> Panel | None:
    """The masks that the cascade filter kept."""
    stages = view.stages
    if stages.pruned is None:
        return None
    left = "".join(f"; {count} {why}" for why, count in why_pruned(view).items() if count)
    return Panel(
        view.on_photo(stages.pruned),
        f"{view.settings('background_filter', 'tau_f', 'tau_ioa')}: {len(stages.pruned)} of "
        f"{counted(stages.foreground, 'mask')} kept{left}",
        "The masks kept. Raise tau_f or tau_ioa to keep more.",
    )


def merged(view: View) -> Panel | None:
    """The masks after merging."""
    stages = view.stages
    if stages.merged is None or not len(stages.merged):
        return None
    names = ("tau_merge_ioa", "tau_merge_gate", "tau_merge_f")
    return Panel(
        view.on_photo(stages.merged),
        f"{view.settings(*names)}: {len(stages.pruned)} became {counted(stages.merged, 'mask')}",
        "Overlapping masks united. An object in parts: lower these thresholds. Several objects in "
        "one mask: raise them, or tau_b.",
    )


def regions(view: View) -> Panel:
    """How finely the merge tree divides the image."""
    found = view.stages.regions
    counts = found.sum(axis=0)
    most = max(1, counts.max())
    return Panel(
        heat(counts / most, view.photo),
        f"{view.settings('min_patches', 'max_share')}: {counted(found, 'region')}",
        "How many regions of the merge tree a patch is in: neighbours merge, the most alike first. "
        "Lower min_patches, or raise grid, for smaller objects.",
        Scale(0, most),
    )


def likeness_to_border(view: View) -> Panel:
    """The background cue of the scores."""
    quantile = view.config.background_quantile
    shares = resemblance_to_border(view.centred.numpy(), quantile)
    return Panel(
        heat(shares.reshape(view.features.shape[1:]), view.photo),
        f"{view.settings('background_quantile')}",
        "Share of the border's patches that a patch resembles: bright regions score low. Raise "
        "background_quantile to ask for more likeness.",
        Scale(0, 1),
    )


def scored(view: View) -> Panel | None:
    """The regions with the highest scores, on the grid."""
    stages = view.stages
    if stages.merged is None or not len(stages.merged):
        return None
    most, least = stages.scores.max(), stages.scores.min()
    best = stages.merged[: ALONE**2]
    centred = view.centred.numpy()
    cues = score_masks(centred, best, Frame.of(centred, view.config.background_quantile))
    del cues["score"]
    costly = [min(cues, key=lambda name, i=i: cues[name][i]) for i in range(len(best))]
    said = [
        f"{score:.2f} {name} {cues[name][index]:.2f}"
        for index, (score, name) in enumerate(zip(stages.scores, costly, strict=False))
    ]
    return Panel(
        one_by_one(view.photo, upsample(best, *view.photo.shape[:2]), said),
        f"{view.settings('max_iou', 'max_masks')}: {len(stages.merged)} of "
        f"{counted(stages.regions, 'region')} kept, scores from {most:.2f} to {least:.2f}",
        f"The {ALONE**2} best regions, each with its score and the cue that cost it most: contrast "
        "with what is around, agreement (its feature finds just this region), background (unlike "
        "the border), border (hardly on it), size. Of two that overlap by more than max_iou, the "
        "better one stays.",
    )


def cuts(view: View) -> Panel:
    """The masks that MaskCut found."""
    masks = view.stages.merged
    return Panel(
        view.on_photo(masks),
        f"{view.settings('tau', 'masks', 'void_iou', 'min_area')}: {counted(masks, 'mask')}",
        "The masks of successive cuts. Patches whose cosine reaches tau hold together: raise it "
        "for smaller masks.",
    )


def refined(view: View) -> Panel | None:
    """The final masks."""
    before, after = view.stages.merged, view.result.records
    if before is None or not len(before):
        return None
    drawn = after if len(after) <= LISTED else after[: LISTED // 2]  # more would hide each other
    otherwise = "stays unrefined" if view.labeler.name == "regions" else "is dropped"
    return Panel(
        draw_masks(view.photo, record_masks(view, drawn)),
        f"{view.settings('refine', 'refine_min_iou')}: {len(after)} of "
        f"{counted(before, 'mask')} kept",
        "Masks drawn along the edges of the image. One that changes to an IoU below "
        f"refine_min_iou {otherwise}."
        + ("" if drawn is after else f" The first {len(drawn)} are drawn."),
    )


def scores(view: View) -> Panel | None:
    """The final masks with their scores."""
    records = sorted(view.result.records, key=lambda record: -record["score"])
    if not records:
        return None
    masks = record_masks(view, records[:LISTED])
    picture = Image.fromarray(draw_masks(view.photo, masks))
    draw = ImageDraw.Draw(picture)
    for mask, record in zip(masks, records, strict=False):
        text = f"{record['score']:.2f}"
        draw.text(inner_point(mask), text, WHITE, font(16), "mm", stroke_width=2, stroke_fill=BLACK)
    best, worst = records[0]["score"], records[-1]["score"]
    found = f"scores from {best:.2f} to {worst:.2f}" if best > worst else f"each scores {best:.2f}"
    return Panel(
        np.asarray(picture),
        f"{counted(records, 'mask')}: {found}",
        "How likely each mask is an object."
        + (f" The {LISTED} best are drawn." if len(records) > LISTED else "")
        + ("" if best > worst else " Equal scores rank no mask above another."),
    )


def ranked(view: View) -> Panel | None:
    """The best of the final masks, each for itself, since they lie in one another."""
    records = view.result.records
    if not records:
        return None
    best = records[: ALONE**2]
    said = [f"{record['score']:.2f}" for record in best]
    return Panel(
        one_by_one(view.photo, record_masks(view, best), said),
        f"{counted(records, 'mask')}: scores from {records[0]['score']:.2f} to "
        f"{records[-1]['score']:.2f}",
        f"How likely each mask is an object: the best {len(best)}. Scores rank the masks of a data "
        "set; small ones are usual. To train on the best only: INPUT.PSEUDO_LABELS.MIN_SCORE.",
    )


PANELS: dict[str, tuple[tuple[str, Callable[[View], Panel | None]], ...]] = {
    "promerge": (
        ("Photograph", photograph),
        ("Features", features),
        ("Prompts", prompts),
        ("Affinity of some prompts", affinity),
        ("Foreground masks", foreground),
        ("Background vote", background),
        ("Pruned", pruned),
        ("Merged", merged),
        ("Refined", refined),
        ("Scores", scores),
    ),
    "regions": (
        ("Photograph", photograph),
        ("Features", features),
        ("Regions of all scales", regions),
        ("Likeness to the border", likeness_to_border),
        ("Best regions", scored),
        ("Refined", refined),
        ("Scores", ranked),
    ),
    "maskcut": (
        ("Photograph", photograph),
        ("Features", features),
        ("Cuts", cuts),
        ("Refined", refined),
        ("Scores", scores),
    ),
}
"""Title and function, by the labeler's name (and way), in the order of the work."""


# What the panels draw


def pca_colors(features: np.ndarray) -> np.ndarray:
    """The three strongest principal components as red, green and blue.

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


def differing(between: np.ndarray, first: int, count: int) -> list[int]:
    """Prompts that show what there is: after the first, each is the least like those before it.

    Example: the cosines ``[[1, 0.9, 0], [0.9, 1, 0.1], [0, 0.1, 1]]`` give, from 0, the order
    ``[0, 2, 1]``.

    Args:
        between: (K, K) cosines.
        first: the index to begin with.
        count: how many, at most.

    Returns:
        Indices.
    """
    chosen = [first]
    while len(chosen) < min(count, len(between)):
        nearest = between[chosen].max(axis=0)
        nearest[chosen] = np.inf
        chosen.append(int(nearest.argmin()))
    return chosen


def why_pruned(view: View) -> dict[str, int]:
    """How many foreground masks left at the cascade filter, by the test that they failed.

    See ``cascade_filter`` for the tests. These counts and that of the masks kept make all.
    """
    config, stages = view.config, view.stages
    counts = {
        "resemble the background (tau_f)": 0,
        "add nothing to smaller ones": 0,
        "lie on the background (tau_ioa)": 0,
    }
    like, repeat, upon = counts
    if config.background_filter == "none":
        return counts
    areas = stages.foreground.sum(axis=(1, 2))
    alike = np.zeros(len(areas), bool)
    if config.background_filter != "ioa":
        unit = l2_normalize(view.features)
        feature = mean_feature(unit, stages.background)
        alike = mean_similarities(unit, stages.foreground, areas, feature) >= config.tau_f
    counts[like] = int(alike.sum())
    kept = collections.deque(stages.pruned)  # by ascending area, as they are taken
    union = np.zeros_like(stages.foreground[0])
    order = np.argsort(areas, kind="stable")
    for mask in stages.foreground[order[~alike[order]]]:
        if kept and np.array_equal(mask, kept[0]):
            union |= kept.popleft()
        elif (mask & ~union).any():
            counts[upon] += 1
        else:
            counts[repeat] += 1
    return counts


def record_masks(view: View, records: Sequence[dict]) -> list[np.ndarray]:
    """The masks (h, w) bool of records, at the size of a panel."""
    return [
        resize_mask(mask_utils.decode(r["segmentation"]).astype(bool), *view.photo.shape[:2])
        for r in records
    ]


def one_by_one(photo: np.ndarray, masks: Sequence[np.ndarray], said: Sequence[str]) -> np.ndarray:
    """Up to ``ALONE`` squared masks (h, w) bool, each alone on a small photograph (h, w, 3)."""
    picture = np.full_like(photo, 255)
    sides = [np.array_split(np.arange(side), ALONE) for side in photo.shape[:2]]
    places = [np.ix_(rows[1:], columns[1:]) for rows in sides[0] for columns in sides[1]]
    for place, mask, text in zip(places, masks, said, strict=False):
        height, width = picture[place].shape[:2]
        # faint and grey but for the mask
        grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None] // 3 + 150
        small = resize_image(np.where(mask[..., None], photo, grey).astype(np.uint8), height, width)
        tile = Image.fromarray(small)
        ImageDraw.Draw(tile).text(
            (3, height - 3), text, WHITE, font(12), "lb", stroke_width=2, stroke_fill=BLACK
        )
        picture[place] = np.asarray(tile)
    return picture


def inner_point(mask: np.ndarray) -> tuple[int, int]:
    """The point (x, y) of a mask (h, w) bool that is farthest from its edge."""
    inside = np.pad(mask, 1).astype(np.uint8)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    row, column = np.unravel_index(distance.argmax(), mask.shape)
    return int(column), int(row)


def counted(things: Sequence, name: str) -> str:
    """How many there are: ``1 mask``, ``2 masks``."""
    return f"{len(things)} {name}" + ("" if len(things) == 1 else "s")


def enlarge(picture: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A picture (H, W, 3) of the grid at the size ``shape`` (h, w, ...), patches as rectangles."""
    return upsample(picture.transpose(2, 0, 1), *shape[:2]).transpose(1, 2, 0)


def heat(values: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """A heat map over a faint photograph.

    Args:
        values: (H, W) float, drawn from 0 (dark) to 1 (bright).
        photo: (h, w, 3) uint8 RGB.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    levels = np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
    colors = enlarge(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1], photo.shape)
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None]
    return np.round(0.7 * colors + 0.3 * grey).astype(np.uint8)


def draw_contour(picture: np.ndarray, mask: np.ndarray, thickness: int) -> None:
    """Outline a mask (H, W) bool of the grid on a picture (h, w, 3), in place."""
    (large,) = upsample(mask[None], *picture.shape[:2])
    outline, _ = cv2.findContours(large.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outline, -1, WHITE, thickness)


def patch_center(
    patch: Sequence[int], grid: Sequence[int], shape: Sequence[int]
) -> tuple[int, int]:
    """The centre (x, y) of a patch (row, column) in a picture of ``shape`` (h, w, ...)."""
    (row, column), (rows, columns), (height, width) = patch, grid, shape[:2]
    return int((column + 0.5) * width / columns), int((row + 0.5) * height / rows)


# The sheet


def draw_sheet(view: View) -> np.ndarray:
    """All panels of an image on one sheet.

    When there are no masks, the last panel that was reached says why; those after it are
    "not reached".

    Returns:
        (height, width, 3) uint8 RGB.
    """
    panels = [(title, function(view)) for title, function in view.panels]
    last = max(index for index, (_, panel) in enumerate(panels) if panel is not None)
    reason = view.result.reason
    outcome = counted(view.result.records, "mask")
    if reason:
        outcome = f"no masks, since {view.labeler.reasons[reason]} ({reason})"
    cells = [
        _draw_cell(view, f"{index + 1} {title}", panel, outcome if reason and index == last else "")
        for index, (title, panel) in enumerate(panels)
    ]
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    width = GAP + len(rows[0]) * (SIDE + GAP)
    heights = [max(cell.height for cell in row) for row in rows]
    heading = 2 * GAP + 50
    sheet = Image.new("RGB", (width, heading + sum(heights) + GAP * len(rows)), WHITE)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), view.name, BLACK, font(26))
    what = f"{view.labeler.title}, preset {view.preset}: {outcome}"
    draw.text((GAP, GAP + 36), what, RED if reason else BLACK, font(18))
    top = heading
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (GAP + column * (SIDE + GAP), top))
        top += height + GAP
    return np.asarray(sheet)


def _draw_cell(view: View, title: str, panel: Panel | None, reason: str) -> Image.Image:
    """A panel with its words, ``SIDE`` wide."""
    height, width = view.photo.shape[:2]
    cell = Image.new("RGB", (SIDE, 2 * SIDE), WHITE)
    draw = ImageDraw.Draw(cell)
    draw.text((0, 0), title, BLACK if panel else GREY, font(20))
    top = 30
    if panel is None:
        draw.rectangle((0, top, width - 1, top + height - 1), PALE)
        draw.text((width // 2, top + height // 2), "not reached", GREY, font(20), anchor="mm")
        return cell.crop((0, 0, SIDE, top + height))
    cell.paste(Image.fromarray(panel.picture), (0, top))
    top += height + 6
    if panel.scale:
        _draw_scale(cell, panel.scale, top)
        top += 32
    for text, color in ((panel.found, BLACK), (reason, RED), (panel.shows, GREY)):
        for line in _wrap(text, font(TEXT), SIDE):
            draw.text((0, top), line, color, font(TEXT))
            top += TEXT + 5
        top += 4
    return cell.crop((0, 0, SIDE, top))


def _draw_scale(cell: Image.Image, scale: Scale, top: int) -> None:
    """A bar of the heat map's colours, its ends, and the threshold between them."""
    levels = np.linspace(0, 1, SIDE)[None].repeat(10, axis=0)
    bar = heat(levels, np.full((10, SIDE, 3), 128, np.uint8))
    cell.paste(Image.fromarray(bar), (0, top))
    draw = ImageDraw.Draw(cell)
    draw.text((0, top + 12), f"{scale.low:g}", GREY, font(14))
    draw.text((SIDE, top + 12), f"{scale.high:g}", GREY, font(14), anchor="ra")
    if scale.mark is not None:
        x = round((scale.mark - scale.low) / (scale.high - scale.low) * (SIDE - 1))
        draw.line((x, top - 2, x, top + 12), BLACK, 2)
        draw.text((min(max(x, 40), SIDE - 40), top + 12), f"{scale.mark:g}", BLACK, font(14), "ma")


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which is there on every machine."""
    return ImageFont.load_default(size)


def _wrap(text: str, face: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of at most ``width`` pixels."""
    lines: list[str] = []
    for word in text.split():
        if lines and face.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
