"""The labelers' figures as tables and as a picture."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measure import Figures
from benchmarks.plots import bars
from benchmarks.report import cross_table, number, table
from benchmarks.speed.methods import METHODS
from benchmarks.speed.tasks import AFTER, BEFORE, RELEASED
from promerge_d2.labeler.refine import REFINERS
from promerge_d2.visualization.figures import picture

TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # of the plot of ratios
REFINER_COLUMNS = {
    "seconds_per_image": "seconds",
    "ratio_to_released": "times faster",
    "mean_iou": "mean IoU",
    "min_iou": "lowest IoU",
}
STAGES = (*BEFORE, *AFTER)
RATIOS = (
    ("Prompts, filter and merging, to released-style", "masks.ratio_to_released", "masks"),
    ("Refinement, to released-style", "refine.ratio_to_released", "refine"),
    ("Features, to released-style", "features.ratio_to_released", "released"),
    ("Whole labeler, to released-style", "total.ratio_to_released", "released"),
    ("– if all but our features were free", "total.bound_by_features", "released"),
    ("After the features, to released-style", "after_features.ratio_to_released", "released"),
    ("Whole labeler, to MaskCut", "total.ratio_to_maskcut", "maskcut_reference"),
    (
        "– if MaskCut had our features",
        "total.ratio_to_maskcut_same_features",
        "maskcut_reference",
    ),
    ("After the features, to MaskCut", "after_features.ratio_to_maskcut", "maskcut_reference"),
)
"""Row of the table, the figure, and what stands before ``.images`` in the name of its count."""


def labeler_parts(figures: Figures) -> list[str]:
    """Write all tables as Markdown, and what bounds us; nothing where nothing was measured."""
    if "masks.ratio_to_released" not in figures:
        return []
    refiners = (RELEASED, *(name for name, refiner in REFINERS.items() if refiner))
    return [
        "**How many times faster `promerge` is**",
        ratio_table(figures),
        sameness(figures),
        "**Seconds an image, one process with one thread**",
        stage_table(figures),
        bound(figures),
        "**Refiners**",
        cross_table(figures, {f"refiner.{n}": n for n in refiners}, REFINER_COLUMNS, spread=False),
    ]


def ratio_table(figures: Figures) -> str:
    """Write every ratio with its spread, and on how many images it was measured."""
    rows = [
        [title, number(figures, name), number(figures, f"{count}.images")]
        for title, name, count in RATIOS
    ]
    return table(["", "times", "images"], rows)


def sameness(figures: Figures) -> str:
    """Say whether fast and slow ways give the same."""
    text = (
        f"With {figures['masks.prompts']:.0f} prompts, masks on the grid are identical to the "
        f"released-style ones on {figures['masks.images_identical']:.0f} of "
        f"{figures['masks.images']:.0f} images"
    )
    if "maskcut.images_identical" in figures:
        text += (
            f", those of `maskcut` to the dense solver's on "
            f"{figures['maskcut.images_identical']:.0f} of "
            f"{figures['maskcut_reference.images']:.0f}; features differ from released-style ones "
            f"by {figures['features.max_difference']:.1g} of the largest at most"
        )
    return f"{text}."


def stage_table(figures: Figures) -> str:
    """Write methods by stages, and by what these add up to."""
    columns = {
        "features_s": "features",
        "masks_s": "masks",
        "refinement_s": "refinement",
        "total_s": "in total",
        "throughput_images_per_s": f"images/s after the features, "
        f"{figures.get('throughput.processes', 0):.0f} processes",
        "peak_mb": "MB",
    }
    methods = {name: method.title for name, method in METHODS.items()}
    return cross_table(figures, methods, columns, spread=False)


def bound(figures: Figures) -> str:
    """Say where our time goes."""
    if "ours.total_s" not in figures:
        return ""
    whole = figures["ours.total_s"]
    shares = {stage: figures[f"ours.{stage}_s"] / whole for stage in STAGES}
    largest = max(shares, key=lambda stage: shares[stage])
    return (
        f"Preset `best` costs {number(figures, 'total.best_to_ours')} times as much as `release` "
        f"({figures['best.images']:.0f} images). What bounds us: {largest}, {shares[largest]:.1%} "
        f"of the time. After the features the process computed for "
        f"{figures['ours.cpu_share']:.0%} of it; well below 100 %, something else used the machine."
    )


def plot(figures: Figures, path: Path) -> None:
    """Draw seconds an image by stage, and the ratios, side by side."""
    with picture(path, dpi=150, ncols=2, figsize=(12, 4)) as (_, axes):
        left, right = axes[0]
        methods = [name for name in METHODS if f"{name}.total_s" in figures]
        seconds = {s: [figures[f"{name}.{s}_s"] for name in methods] for s in STAGES}
        bars(left, methods, seconds, stacked=True)
        left.set_xlabel("seconds an image, one thread")
        above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1)}
        left.legend(fontsize=8, ncols=len(STAGES), frameon=False, **above)
        ratios = [name for _, name, _ in RATIOS if name in figures]
        values = [figures[name] for name in ratios]
        around = [figures[f"{name}.iqr"] / 2 for name in ratios]
        bars(right, ratios, {"times": values}, xerr=around, color="tab:gray")
        right.set(xscale="log" if ratios else "linear", xlabel="times faster")
        if ratios:
            ticks = [tick for tick in TICKS if tick <= 2 * max(values)]
            right.set(xlim=(min(1, *values), 2 * max(values)), xticks=ticks, xticklabels=ticks)
            right.minorticks_off()
        right.set_title("ratios ± half the interquartile range")
        right.tick_params(axis="y", labelsize=7)
