"""Scores of zero-shot transfer: tables, JSON, Markdown, and one page with plots and pictures."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from pycocotools import mask as mask_api

from promerge_d2.coco.records import locate
from promerge_d2.data.benchmarks import BENCHMARKS, PUBLISHED, PUBLISHED_SOURCE, SIX, published
from promerge_d2.evaluation.bootstrap import LEVEL, Estimate
from promerge_d2.evaluation.matches import KINDS, RECALLS, THRESHOLDS
from promerge_d2.evaluation.metrics import PROTOCOL, flat_metrics
from promerge_d2.evaluation.zero_shot import Score
from promerge_d2.utils.files import atomic_path, path_inside, write_json
from promerge_d2.utils.image import ImageError, load_image
from promerge_d2.visualization.figures import picture
from promerge_d2.visualization.overlay import draw_boxes, draw_masks, save_png
from promerge_d2.visualization.pages import Gallery, Table, as_markdown, write_page

logger = logging.getLogger(__name__)

NotRun = dict[str, str]

_SHOWN = ("AP", "AR100")  # the metrics whose intervals the tables show
_DECIMALS = 2  # figures of masks that nothing was trained on are often below 1


def write_all(folder: Path, scores: Sequence[Score], not_run: NotRun, pictures: int) -> str:
    """Write ``results.{json,md}`` and ``index.html`` with its plots and pictures.

    Args:
        folder: where.
        scores: of ``evaluation.zero_shot.score``, data set by data set.
        not_run: why what was asked for is not among them.
        pictures: how many best and how many worst images of each run to show; 0 for none.

    Returns:
        The tables as Markdown.
    """
    tables = as_tables(scores, not_run)
    markdown = as_markdown(tables)
    write_json(folder / "results.json", as_json(scores, not_run), indent=2)
    with atomic_path(folder / "results.md") as part:
        part.write_text(markdown, encoding="utf-8", errors="backslashreplace")
    runs = {s.run: f"{s.run} ({s.about})" if s.about else s.run for s in scores}
    galleries = [_gallery(folder, score, pictures) for score in scores]
    write_page(
        folder / "index.html",
        "report.html",
        title="Zero-shot transfer",
        summary=[f"Runs: {', '.join(runs.values())}. Figures in per cent, all classes as one."],
        warning=_warning(scores),
        tables=tables,
        figures=[(group[0].data_set.title, _plot(folder, group)) for group in _by_data_set(scores)],
        galleries=[gallery for gallery in galleries if gallery.rows],
    )
    return markdown


def as_json(scores: Sequence[Score], not_run: NotRun) -> dict[str, Any]:
    """Put everything into plain values; intervals are ``[value, low, high]``."""
    return {
        "protocol": PROTOCOL,
        "interval": f"{LEVEL} %, bootstrap over images",
        "results": [
            {
                "data_set": score.data_set.name,
                "run": score.run,
                "ground_truth": str(score.data_set.json_file),
                "predictions_file": score.predictions.name,
                "protocol": protocol_of(score),
                "images": len(score.truth.images),
                "images_listed": len(score.predictions.listed),
                "objects": int((~score.truth.objects.crowd).sum()),
                "predictions": len(score.predictions.instances),
                "figures": flat_metrics(score.figures),
                "intervals": _plain(score.intervals),
                "difference_to": score.first if score.differences else None,
                "differences": _plain(score.differences),
                "published_AP": published(score.data_set.name),
            }
            for score in scores
        ],
        "not_run": not_run,
        "published_source": PUBLISHED_SOURCE,
    }


def _plain(estimates: dict[str, dict[str, Estimate]]) -> dict[str, list[float | None]]:
    return {name: [e.value, e.low, e.high] for name, e in flat_metrics(estimates).items()}


def as_tables(scores: Sequence[Score], not_run: NotRun) -> list[Table]:
    """Make the overview with the published rows, a table per data set, and what was not run."""
    tables = [_overview(scores)]
    for group in _by_data_set(scores):
        tables += [_figures(group), *([_certainty(group)] if group[0].intervals else [])]
    if not_run:
        tables.append(Table("Not run", ["data set", "why"], list(not_run.items())))
    return tables


def _by_data_set(scores: Sequence[Score]) -> list[list[Score]]:
    groups = itertools.groupby(scores, lambda score: score.data_set.name)
    return [list(group) for _, group in groups]


def _overview(scores: Sequence[Score]) -> Table:
    """AP of all runs beside the published rows."""
    titles = {name: BENCHMARKS[name].title for name in SIX}
    titles |= {score.data_set.name: score.data_set.title for score in scores}
    found = {
        f"{method} (published)": {n: published(n)[method] for n in SIX} for method in PUBLISHED
    }
    for score in scores:
        found.setdefault(score.run, {})[score.data_set.name] = score.figures[score.main]["AP"]
    rows = [[run, *(row.get(name, "-") for name in titles)] for run, row in found.items()]
    note = f"AP, per cent; masks where a data set has them, else boxes. {PUBLISHED_SOURCE}"
    return Table("Overview", ["", *titles.values()], rows, note, _DECIMALS)


def _figures(group: Sequence[Score]) -> Table:
    """All metrics of the runs on one data set."""
    names = list(group[0].figures[group[0].main])
    rows = [
        [
            f"{score.run}, {KINDS[kind]}{_lists(score)}",
            *("-" if value == -1 else value for value in metrics.values()),
        ]
        for score in group
        for kind, metrics in score.figures.items()
    ]
    note = f"Protocol: {protocol_of(group[0])}."
    return Table(group[0].data_set.title, ["", *names], rows, note, _DECIMALS)


def _certainty(group: Sequence[Score]) -> Table:
    """Intervals of the runs on one data set, and of what they differ from the first."""
    columns = ["", *(f"{name} [{LEVEL} %]" for name in _SHOWN)]
    if len(group) > 1:
        columns += [f"{name} minus that of {group[0].run}" for name in _SHOWN]
    rows = []
    for score in group:
        for kind, metrics in score.intervals.items():
            row = [f"{score.run}, {KINDS[kind]}", *(str(metrics[name]) for name in _SHOWN)]
            paired = score.differences.get(kind)
            if len(group) > 1:
                row += [str(paired[name]) if paired else "-" for name in _SHOWN]
            rows.append(row)
    note = "Bootstrap over images; differences are paired: both runs see the same draws."
    return Table(f"{group[0].data_set.title}: how sure", columns, rows, note)


def protocol_of(score: Score) -> str:
    """Say in words what was counted and how, on which images."""
    regions = int(score.truth.objects.crowd.sum())
    images, whole = len(score.truth.images), score.data_set.images
    subset = f", a subset of {whole}" if whole and whole != images else ""
    if score.left_out:
        subset += f", those of {images + score.left_out} that every run lists"
    detections = max(found.max_detections for found in score.matches.values())
    more = f"; AR{detections} from {detections} detections an image" if detections > 100 else ""
    masks = "masks and boxes" if "segm" in score.figures else "boxes only"
    return (
        f"{images} images{subset}, {len(score.truth.objects) - regions} objects, "
        f"{regions} ignore regions; {masks}; {PROTOCOL}{more}"
    )


def _warning(scores: Sequence[Score]) -> str:
    """Say what a reader must know before believing a figure."""
    listed, subsets, partial = set(), set(), set()
    for score in scores:
        title, images = score.data_set.title, len(score.truth.images)
        if score.left_out:
            listed.add(f"{title} {images} of {images + score.left_out}")
        if score.data_set.images not in (None, images):
            subsets.add(f"{title} {images} of {score.data_set.images}")
        if _lists(score):
            partial.add(f"{score.run} on {title}{_lists(score)}")
    parts = ["Published rows and ours compare only where images and protocol are the same."]
    if listed:
        parts.append(f"Only images that every run lists: {', '.join(sorted(listed))}.")
    if subsets:
        parts.append(f"Subsets: {', '.join(sorted(subsets))} images.")
    if partial:
        parts.append(f"Images without predictions count as missed: {', '.join(sorted(partial))}.")
    return " ".join(parts)


def _lists(score: Score) -> str:
    listed, images = len(score.predictions.listed), len(score.truth.images)
    return "" if listed == images else f" (lists {listed} of {images} images)"


def _plot(folder: Path, group: Sequence[Score]) -> str:
    """Draw precision and recall, AR against the number of detections, AP by size."""
    name = f"plots/{group[0].data_set.name}.png"
    with picture(folder / name, dpi=100, ncols=3, figsize=(15, 4.2)) as (_, axes):
        _draw_curves(group, *axes[0])
    return name


def _draw_curves(group: Sequence[Score], curve: Axes, proposals: Axes, sizes: Axes) -> None:
    most = max(score.matches[score.main].max_detections for score in group)
    counts = np.unique(np.geomspace(1, most, 25).round().astype(int))
    width, reached = 0.8 / len(group), 1.0
    for i, score in enumerate(group):
        found, color = score.matches[score.main], f"C{i % 10}"
        once = np.ones((1, len(found.image_ids)), np.int64)
        precision = found.precision(0, once)[0] * 100
        reached = max(reached, RECALLS[np.flatnonzero(precision[0]).max(initial=0)] * 100)
        for t, style in ((0, "-"), (5, "--")):
            label = f"{score.run}, IoU {THRESHOLDS[t]:.2f}"
            curve.plot(RECALLS * 100, precision[t], style, color=color, label=label)
        recalls = [found.recall(0, int(count), once).mean() * 100 for count in counts]
        proposals.plot(counts, recalls, color=color, marker=".", label=score.run)
        values = [max(0.0, score.figures[score.main][f"AP{size}"]) for size in "sml"]
        places = np.arange(3) + (i - (len(group) - 1) / 2) * width
        sizes.bar(places, values, width, color=color, label=score.run)
    kind = KINDS[group[0].main]
    curve.set(ylabel=f"precision ({kind})", xlim=(0, 1.05 * reached), ylim=(0, 102))
    curve.set(xlabel="recall" if reached == 100 else f"recall (ends at {reached:.0f})")
    ticks = [count for count in (1, 3, 10, 30, 100, 300, 1000) if count <= most]
    proposals.set(xlabel="detections an image", ylabel=f"AR ({kind})", xscale="log", ylim=(0, None))
    proposals.set_xticks(ticks, map(str, ticks))
    proposals.minorticks_off()
    sizes.set(ylabel=f"AP ({kind})", xticks=range(3), xticklabels=["small", "medium", "large"])
    for axes in (curve, proposals, sizes):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)


def _gallery(folder: Path, score: Score, count: int) -> Gallery:
    """Draw the best and worst images of a run by their own AP, ground truth beside predictions."""
    rows = []
    if count and score.data_set.image_root.is_dir():
        values = score.matches[score.main].image_ap()
        order = [int(i) for i in np.argsort(-values, kind="stable") if not np.isnan(values[i])]
        for i in dict.fromkeys([*order[:count], *order[-count:]]):
            row = _row(folder, score, i, values[i])
            rows += [row] if row else []
    title = f"{score.data_set.title}, {score.run}: best and worst images"
    note = "By AP of the image alone; of the predictions the best 10, or as many as objects."
    return Gallery(title, ("ground truth", score.run), rows, note)


def _row(folder: Path, score: Score, index: int, ap: float) -> tuple[str, list[str]] | None:
    """Draw one image; None where it cannot be read."""
    image = list(score.truth.images.values())[index]
    if image.file_name is None:
        return None
    where = f"{score.data_set.json_file}: image {image.id!r}"
    path_inside(score.data_set.image_root, image.file_name, where)
    try:
        pixels = load_image(locate(score.data_set.image_root, image.file_name))
    except ImageError as error:
        logger.warning("a picture is left out of the page: %s", error)
        return None
    objects = [item for item in score.truth.objects.on_image(image.id) if not item.crowd]
    guesses = score.predictions.instances.on_image(image.id)
    best = sorted(guesses, key=lambda item: -item.score)[: max(10, len(objects))]
    files = []
    for side, items in (("truth", objects), (score.run, best)):
        masks = [mask_api.decode(item.rle).astype(bool) for item in items if item.rle]
        boxes = [item.box for item in items]
        files.append(f"pictures/{score.data_set.name}/{side}/{index}.png")
        drawn = draw_masks(pixels, masks) if masks else draw_boxes(pixels, boxes)
        save_png(folder / files[-1], drawn)
    return f"{image.file_name}: AP {ap:.1f}, {len(objects)} objects", files
