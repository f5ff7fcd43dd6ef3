"""Scores as JSON, CSV, Markdown and one page with plots and pictures."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageDraw
from PIL.Image import fromarray
from pycocotools import mask as mask_api

from promerge_d2.coco.records import Instance
from promerge_d2.data.benchmarks import BENCHMARKS, PUBLISHED, PUBLISHED_SOURCE, SIX, published
from promerge_d2.evaluation.bootstrap import LEVEL, Estimate
from promerge_d2.evaluation.matches import RECALLS, THRESHOLDS
from promerge_d2.evaluation.metrics import PROTOCOL, flat_metrics
from promerge_d2.evaluation.zero_shot import Score
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path, make_folder, path_inside, write_json
from promerge_d2.utils.image import load_image
from promerge_d2.visualization.figures import picture
from promerge_d2.visualization.overlay import color_of, draw_masks, save_png
from promerge_d2.visualization.report import Gallery, Table, write_report

logger = logging.getLogger(__name__)

KINDS = {"segm": "mask", "bbox": "box"}
NotRun = dict[str, str]

_SHOWN = ("AP", "AR100")  # the metrics whose intervals the tables show
_DECIMALS = 2  # figures of masks that nothing was trained on are often below 1


def protocol_of(scores: Sequence[Score]) -> str:
    """The protocol of one data set, in words: what was counted and how, on which images."""
    first = scores[0]
    regions = int(first.truth.objects.crowd.sum())
    images = len(first.truth.images)
    whole = first.data_set.images
    subset = f", a subset of {whole}" if whole and whole != images else ""
    if first.left_out:
        subset += f", those of {images + first.left_out} that every run lists"
    detections = max(found.max_detections for found in first.matches.values())
    more = f"; AR{detections} from {detections} detections an image" if detections > 100 else ""
    masks = "masks and boxes" if "segm" in first.figures else "boxes only"
    return (
        f"{images} images{subset}, {len(first.truth.objects) - regions} objects, "
        f"{regions} ignore regions; {masks}; {PROTOCOL}{more}"
    )


def _lists(score: Score) -> str:
    listed, images = len(score.predictions.listed), len(score.truth.images)
    return "" if listed == images else f" (lists {listed} of {images} images)"


def as_json(scores: Sequence[Score], not_run: NotRun) -> dict[str, Any]:
    """Everything, as plain values; intervals are ``[value, low, high]``."""
    return {
        "protocol": PROTOCOL,
        "interval": f"{LEVEL} %, bootstrap over images",
        "results": [
            {
                "data_set": score.data_set.name,
                "run": score.run,
                "ground_truth": str(score.data_set.json_file),
                "predictions_file": score.predictions.name,
                "protocol": protocol_of([score]),
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


def as_csv(scores: Sequence[Score]) -> str:
    """One row for each data set, run and kind; the ends of the AP and AR100 intervals last."""
    names = list(dict.fromkeys(n for s in scores for m in s.figures.values() for n in m))
    head = ["data_set", "run", "kind", "images", "objects", "predictions", *names]
    head += [f"{name}_{end}" for name in _SHOWN for end in ("low", "high")]
    text = io.StringIO()
    writer = csv.DictWriter(text, head, restval="", lineterminator="\n")
    writer.writeheader()
    for score in scores:
        for kind, metrics in score.figures.items():
            row = {
                "data_set": score.data_set.name,
                "run": score.run,
                "kind": KINDS[kind],
                "images": len(score.truth.images),
                "objects": int((~score.truth.objects.crowd).sum()),
                "predictions": len(score.predictions.instances),
                **metrics,
            }
            for name in _SHOWN if kind in score.intervals else ():
                estimate = score.intervals[kind][name]
                row |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
            writer.writerow(row)
    return text.getvalue()


def as_tables(scores: Sequence[Score], not_run: NotRun) -> list[Table]:
    """The overview with the published rows, one table for each data set, what was not run."""
    tables = [_overview(scores)]
    for group in _by_data_set(scores):
        tables += [_figures(group), *([_certainty(group)] if group[0].intervals else [])]
    if not_run:
        rows = [[name, reason] for name, reason in not_run.items()]
        tables.append(Table("Not run", ["data set", "why"], rows))
    return tables


def _by_data_set(scores: Sequence[Score]) -> list[list[Score]]:
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(score.data_set.name, []).append(score)
    return list(groups.values())


def _overview(scores: Sequence[Score]) -> Table:
    """AP of all runs beside the published rows."""
    sets = {name: "" for name in SIX} | {s.data_set.name: "" for s in scores}
    titles = {score.data_set.name: score.data_set.title for score in scores}
    columns = [titles.get(name) or BENCHMARKS[name].title for name in sets]
    rows = []
    for method in PUBLISHED:
        rows.append([f"{method} (published)", *(published(n).get(method, "-") for n in sets)])
    for run in dict.fromkeys(score.run for score in scores):
        own = {s.data_set.name: s.figures[s.main]["AP"] for s in scores if s.run == run}
        rows.append([run, *(own.get(name, "-") for name in sets)])
    note = f"AP, per cent; masks where a data set has them, else boxes. {PUBLISHED_SOURCE}"
    return Table("Overview", ["", *columns], rows, note, _DECIMALS)


def _figures(group: Sequence[Score]) -> Table:
    names = list(next(iter(group[0].figures.values())))
    rows = [
        [
            f"{score.run}, {KINDS[kind]}{_lists(score)}",
            *(_cell(value) for value in metrics.values()),
        ]
        for score in group
        for kind, metrics in score.figures.items()
    ]
    note = f"Protocol: {protocol_of(group)}."
    return Table(group[0].data_set.title, ["", *names], rows, note, _DECIMALS)


def _certainty(group: Sequence[Score]) -> Table:
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


def _cell(value: float) -> str | float:
    return "-" if value == -1 else value


def as_markdown(tables: Sequence[Table]) -> str:
    """The tables as Markdown."""
    parts = []
    for table in tables:
        rows = [table.columns, ["---"] * len(table.columns)]
        rows += [[table.text(cell) for cell in row] for row in table.rows]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        parts += [f"## {table.title}", "\n".join(lines), *([table.note] if table.note else [])]
    return "\n\n".join(parts) + "\n"


def write_all(folder: Path, scores: Sequence[Score], not_run: NotRun, pictures: int) -> None:
    """Write ``results.{json,csv,md}`` and ``index.html`` with its plots and pictures.

    Args:
        folder: where.
        scores: from ``harness.score``, data set by data set.
        not_run: why what was asked for is not among them.
        pictures: how many best and how many worst images of each run to show; 0 for none.
    """
    tables = as_tables(scores, not_run)
    groups = _by_data_set(scores)
    galleries = [_gallery(folder, score, pictures) for group in groups for score in group]
    plots = [(group[0].data_set.title, _plot(folder, group)) for group in groups]
    write_json(folder / "results.json", as_json(scores, not_run), indent=2)
    for name, text in (("results.csv", as_csv(scores)), ("results.md", as_markdown(tables))):
        with atomic_path(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    about = {score.run: f" ({score.about})" if score.about else "" for score in scores}
    runs = ", ".join(f"{run}{said}" for run, said in about.items())
    write_report(
        folder / "index.html",
        "Zero-shot transfer",
        [f"Runs: {runs}. Figures in per cent, all classes as one."],
        _warning(scores),
        tables,
        plots,
        [gallery for gallery in galleries if gallery is not None],
    )


def _warning(scores: Sequence[Score]) -> str:
    """What a reader must know before believing a figure."""
    subsets = {
        f"{s.data_set.title} {len(s.truth.images)} of {s.data_set.images}"
        for s in scores
        if s.data_set.images not in (None, len(s.truth.images))
    }
    partial = {f"{s.run} on {s.data_set.title}{_lists(s)}" for s in scores if _lists(s)}
    parts = ["Published rows and ours compare only where images and protocol are the same."]
    listed = {
        f"{s.data_set.title} {len(s.truth.images)} of {len(s.truth.images) + s.left_out}"
        for s in scores
        if s.left_out
    }
    if listed:
        parts.append(f"Only images that every run lists: {', '.join(sorted(listed))}.")
    if subsets:
        parts.append(f"Subsets: {', '.join(sorted(subsets))} images.")
    if partial:
        parts.append(f"Images without predictions count as missed: {', '.join(sorted(partial))}.")
    return " ".join(parts)


def _plot(folder: Path, group: Sequence[Score]) -> str:
    """Precision-recall curves, AR against the number of detections, AP by size."""
    name = f"plots/{group[0].data_set.name}.png"
    make_folder(folder / "plots")
    with picture(folder / name, dpi=100, ncols=3, figsize=(15, 4.2)) as (_, axes):
        _draw_curves(*axes[0], group)
    return name


def _draw_curves(curve: Any, proposals: Any, sizes: Any, group: Sequence[Score]) -> None:
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
    proposals.set_xticks(ticks, ticks)
    proposals.minorticks_off()
    sizes.set(ylabel=f"AP ({kind})", xticks=range(3), xticklabels=["small", "medium", "large"])
    for axes in (curve, proposals, sizes):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)


def _gallery(folder: Path, score: Score, count: int) -> Gallery | None:
    """The best and worst images of a run by their own AP, ground truth beside predictions."""
    if not count or not score.data_set.image_root.is_dir():
        return None
    values = score.matches[score.main].image_ap()
    order = [int(i) for i in np.argsort(-values, kind="stable") if not np.isnan(values[i])]
    chosen = dict.fromkeys([*order[:count], *order[-count:]])
    images = list(score.truth.images.values())
    rows = []
    for i in chosen:
        image = images[i]
        if image.file_name is None:
            continue
        where = f"{score.data_set.json_file}: image {image.id!r}"
        path = path_inside(score.data_set.image_root, image.file_name, where)
        try:
            pixels = load_image(path)
        except UserError as error:
            logger.warning("a picture is left out of the page: %s", error)
            continue
        objects = [item for item in score.truth.objects.on_image(image.id) if not item.crowd]
        guesses = score.predictions.instances.on_image(image.id)
        best = sorted(guesses, key=lambda item: -item.score)
        shown = best[: max(10, len(objects))]
        files = []
        for side, items in (("truth", objects), (score.run, shown)):
            name = f"pictures/{score.data_set.name}/{side}/{i}.png"
            save_png(folder / name, _draw(pixels, items))
            files.append(name)
        caption = f"{image.file_name}: AP {values[i]:.1f}, {len(objects)} objects"
        rows.append((caption, files))
    if not rows:
        return None
    title = f"{score.data_set.title}, {score.run}: best and worst images"
    note = "By AP of the image alone; of the predictions the best 10, or as many as objects."
    return Gallery(title, ("ground truth", score.run), rows, note)


def _draw(pixels: np.ndarray, items: Sequence[Instance]) -> np.ndarray:
    masks = [mask_api.decode(item.rle).astype(bool) for item in items if item.rle is not None]
    if masks:
        return draw_masks(pixels, masks)
    picture = fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    line = max(2, round(max(pixels.shape[:2]) / 300))
    for index, item in enumerate(items):
        x, y, width, height = item.box
        draw.rectangle((x, y, x + width, y + height), outline=color_of(index), width=line)
    return np.asarray(picture)
