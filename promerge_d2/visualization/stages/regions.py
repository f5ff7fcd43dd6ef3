"""Panels of the labeler ``regions``, in the order of its stages.

Shape letters: see ``view``.
"""

from __future__ import annotations

from matplotlib.axes import Axes

from promerge_d2.labeler.refine.resize import upsample
from promerge_d2.labeler.regions.scoring import CUES
from promerge_d2.visualization.stages.view import (
    ALONE,
    OPENING,
    REFINED,
    Caption,
    Panel,
    View,
    counted,
    score_range,
)


def regions(view: View, axes: Axes) -> Caption:
    """Draw how finely the merge trees divide the image."""
    found = view.stages.regions
    counts = found.sum(axis=0)
    return Caption(
        f"{view.settings('min_patches', 'max_share')}: {counted(found, 'region')}",
        "How many regions of the merge trees a patch is in: neighbours merge, the most alike "
        "first. Lower min_patches, or raise grid, for smaller objects.",
        view.show_heat(axes, counts, 0, max(1, counts.max())),
    )


def likeness_to_border(view: View, axes: Axes) -> Caption:
    """Draw the background cue of the scores."""
    shares = view.stages.resemblance
    return Caption(
        view.settings("background_quantile"),
        "Share of the border's patches that a patch resembles: bright regions score low. Raise "
        "background_quantile to ask for more likeness.",
        view.show_heat(axes, shares),
    )


def scored(view: View, axes: Axes) -> Caption | None:
    """Draw the regions with the highest scores, on the grid."""
    stages = view.stages
    if stages.merged is None or not len(stages.merged):
        return None
    best = stages.merged[: ALONE**2]
    words = []
    for index in range(len(best)):
        cost, name = min(zip(stages.cues[index], CUES, strict=True))
        words.append(f"{stages.scores[index]:.2f}\n{name} {cost:.2f}")
    view.show_one_by_one(axes, upsample(best, *view.photo.shape[:2]), words)
    most, least = stages.scores.max(), stages.scores.min()
    return Caption(
        f"{view.settings('max_iou', 'max_masks')}: {len(stages.merged)} of "
        f"{counted(stages.regions, 'region')} kept, scores from {most:.2f} to {least:.2f}",
        f"The {ALONE**2} best regions, each with its score and the cue that cost it most: contrast "
        "with what is around, agreement (its feature finds just this region), background (unlike "
        "the border), border (hardly on it), size, compactness, prominence (strong features), edge "
        "(colours change along it), support (every tree has it). Of two that overlap by more than "
        "max_iou, the better one stays; scores fall with the overlap below.",
    )


def ranked(view: View, axes: Axes) -> Caption | None:
    """Draw the best of the final masks, each by itself, since they lie in one another."""
    records = view.result.records
    if not records:
        return None
    best = records[: ALONE**2]
    view.show_one_by_one(axes, view.masks(best), [f"{record['score']:.2f}" for record in best])
    return Caption(
        counted(records, "mask") + score_range(records),
        f"How likely each mask is an object: the best {len(best)}. Scores rank the masks of a data "
        "set; small ones are usual. To train on the best only: INPUT.PSEUDO_LABELS.MIN_SCORE.",
    )


PANELS: tuple[Panel, ...] = (
    *OPENING,
    ("Regions of all scales", regions),
    ("Likeness to the border", likeness_to_border),
    ("Best regions", scored),
    REFINED,
    ("Scores", ranked),
)
