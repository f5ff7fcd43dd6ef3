"""Evaluation beside plain pycocotools, on synthetic detections (``--evaluation``).

Each way reads the same two files in a process and a thread of its own. Seconds are those that the
process computed, since these mean the same on a machine that has other work too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from benchmarks.measure import Figures, forget_peak, fresh_processes, memory_mb
from benchmarks.report import Results, digits, table
from promerge_d2.coco.ground_truth import read_ground_truth
from promerge_d2.coco.predictions import read_predictions
from promerge_d2.evaluation import align_predictions, match_instances, metrics_of
from promerge_d2.evaluation.matches import BACKENDS

SIZE = (480, 640)  # of the images, height and width
OBJECTS = 8  # an image
NEAR = 3  # detections of an object
PLAIN = "plain"
STAGES = ("reading", "matching", "accumulation")
COLUMNS = {f"{stage}_s": f"{stage}, s" for stage in STAGES}
COLUMNS |= {"total_s": "total, s", "mb": "memory, MB"}
COMPARED = (5000, 100)  # images, and detections of each
MILLION = (10_000, 100)

Costs = tuple[dict[str, float], list[float]]
"""Seconds of each stage and in all (``STAGE_s``, ``total_s``) and memory (``mb``); metrics."""


def measure(args: argparse.Namespace) -> Results:
    """Measure plain pycocotools and each backend of ours; a million detections with the quickest.

    Figures: ``KIND.WAY.STAGE_s``, ``.total_s``, ``.mb`` (most memory above that at the start), and
    for ours ``KIND.WAY.STAGE.ratio`` (times faster than plain; for memory times less) and
    ``KIND.WAY.largest_difference`` of any metric; ``many.*`` without ratios.
    """
    return measure_evaluation()


def measure_evaluation(
    compared: tuple[int, int] = COMPARED, many: tuple[int, int] = MILLION, fresh: bool = True
) -> Results:
    """As ``measure``.

    Args:
        compared: images, and detections an image, of what every way evaluates, boxes and masks.
        many: the same of what only ours does.
        fresh: in fresh processes; False is quick, and its memory means little.
    """
    backends = [name for name in BACKENDS if find_spec(name)]
    figures = Figures()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ("bbox", "segm"):
            write_synthetic(folder, *compared, masks=kind == "segm")
            reference = in_process(fresh, evaluate_plainly, folder, kind)
            put(figures, f"{kind}.{PLAIN}", reference)
            for backend in backends:
                costs = in_process(fresh, evaluate_ours, folder, kind, backend)
                put(figures, f"{kind}.{backend}", costs, reference)
            if kind == "bbox":
                write_synthetic(folder, *many, masks=False)
                costs = in_process(fresh, evaluate_ours, folder, kind, backends[-1])
                put(figures, f"many.{backends[-1]}", costs)
    figures["images"], figures["detections"] = compared[0], compared[0] * compared[1]
    figures["many.images"], figures["many.detections"] = many[0], many[0] * many[1]
    title = (
        f"{figures['images']:,.0f} images, {figures['detections']:,.0f} detections; seconds of "
        "computing in one process and thread, memory above that at its start. In brackets: times "
        "faster (less memory) than plain pycocotools (`loadRes`, `COCOeval`)"
    )
    return Results(title, figures, evaluation_parts(figures, backends))


def in_process(fresh: bool, function: Callable[..., Costs], *args: Any) -> Costs:
    """Call ``function`` in a process of its own and return what it returned."""
    if not fresh:
        return function(*args)
    os.environ["RAYON_NUM_THREADS"] = "1"  # hotcoco's
    with fresh_processes(1) as pool:
        return pool.submit(function, *args).result()


def put(figures: Figures, name: str, costs: Costs, reference: Costs | None = None) -> None:
    """Add the figures of a way; ratios where there is a reference."""
    values, metrics = costs
    figures.update({f"{name}.{key}": value for key, value in values.items()})
    if reference is not None:
        for key in (key for key, value in values.items() if value):  # tiny files take no memory
            figures[f"{name}.{key.removesuffix('_s')}.ratio"] = reference[0][key] / values[key]
        difference = np.abs(np.subtract(metrics, reference[1])).max()
        figures[f"{name}.largest_difference"] = float(difference)


class Clock:
    """Measures the seconds that this process computes, by stage, and the most memory it holds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        forget_peak()
        self._before = memory_mb()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block as a stage."""
        started = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            yield
        self.seconds[name] = time.process_time() - started

    def costs(self) -> dict[str, float]:
        """Return the measured values, see ``Costs``."""
        seconds = {f"{stage}_s": value for stage, value in self.seconds.items()}
        seconds["total_s"] = sum(self.seconds.values())
        return {**seconds, "mb": memory_mb("VmHWM") - self._before}


def evaluate_plainly(folder: Path, kind: str) -> Costs:
    """Evaluate with pycocotools alone, as its own example does."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    clock = Clock()
    with clock.stage("reading"):
        truth = COCO(str(folder / "truth.json"))
        guesses = truth.loadRes(str(folder / "guesses.json"))
    with clock.stage("matching"):
        run = COCOeval(truth, guesses, kind)
        run.evaluate()
    with clock.stage("accumulation"):
        run.accumulate()
        run.summarize()
    return clock.costs(), (run.stats * 100).tolist()


def evaluate_ours(folder: Path, kind: str, backend: str) -> Costs:
    """Evaluate as ``tools/evaluate_labels.py`` does."""
    clock = Clock()
    with clock.stage("reading"):
        truth = read_ground_truth(folder / "truth.json")
        guesses = align_predictions(read_predictions(folder / "guesses.json"), truth)
    with clock.stage("matching"):
        matches = match_instances(truth, guesses, kind, backend=backend)
    with clock.stage("accumulation"):
        metrics = metrics_of(matches)
    return clock.costs(), list(metrics.values())[:12]  # COCOeval's; what follows is our own


def write_synthetic(folder: Path, images: int, detections: int, masks: bool) -> None:
    """Write ``truth.json`` and ``guesses.json``, a result list, always the same.

    An image has ``OBJECTS`` random boxes; its detections are near ones of each, then random ones;
    scores are two-digit numbers, so many are equal. Masks are filled boxes.
    """
    rng = np.random.default_rng(0)
    height, width = SIZE
    listed = [{"id": i, "height": height, "width": width} for i in range(1, images + 1)]
    with open(folder / "truth.json", "w") as truth, open(folder / "guesses.json", "w") as guesses:
        truth.write(f'{{"images": {json.dumps(listed)}, "categories": [{{"id": 1}}], ')
        truth.write('"annotations": [')
        guesses.write("[")
        for i in range(1, images + 1):
            objects = random_boxes(rng, OBJECTS)
            near = np.repeat(objects, NEAR, axis=0)[:detections]
            near = inside(near + rng.normal(0, 0.1, near.shape) * near[:, [2, 3, 2, 3]])
            found = np.concatenate([near, random_boxes(rng, detections - len(near))])
            scores = rng.integers(1, 100, detections) / 100
            for file, boxes, extra in (
                (truth, objects, [{"id": (i - 1) * OBJECTS + n} for n in range(1, OBJECTS + 1)]),
                (guesses, found, [{"score": score} for score in scores.tolist()]),
            ):
                rows = [{"image_id": i, "category_id": 1, **more} for more in extra]
                for row, box in zip(rows, boxes.tolist(), strict=True):
                    row |= {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                if masks:
                    rles = mask_api.frPyObjects(boxes, height, width)
                    for row, rle in zip(rows, rles, strict=True):
                        row["segmentation"] = {**rle, "counts": rle["counts"].decode()}
                        row["area"] = int(mask_api.area(rle))
                        if file is guesses:  # with boxes, pycocotools takes their areas for masks
                            del row["bbox"]
                text = ", ".join(json.dumps(row) for row in rows)
                file.write(text if i == 1 else f", {text}")
        truth.write("]}")
        guesses.write("]")


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw boxes of all sizes: (count, 4) XYWH in pixels."""
    height, width = SIZE
    side = np.exp(rng.uniform(np.log(8), np.log(320), (count, 2)))
    return inside(np.concatenate([rng.uniform(0, 1, (count, 2)) * (width, height), side], axis=1))


def inside(boxes: np.ndarray) -> np.ndarray:
    """Cut boxes (N, 4) XYWH to the image, in hundredths of a pixel, 2 pixels or more a side."""
    height, width = SIZE
    start = boxes[:, :2].clip(0, (width - 2, height - 2))
    stop = (boxes[:, :2] + boxes[:, 2:]).clip(start + 2, (width, height))
    return np.concatenate([start, stop - start], axis=1).round(2)


def evaluation_parts(figures: Figures, backends: list[str]) -> list[str]:
    """Write the figures as tables."""
    parts = []
    titles = {PLAIN: "pycocotools, plain", **{way: f"ours, `{way}`" for way in backends}}

    def row(kind: str, way: str) -> list[str]:
        return [titles[way], *(_cell(figures, f"{kind}.{way}", column) for column in COLUMNS)]

    for kind, title in (("bbox", "Boxes"), ("segm", "Masks")):
        differences = [figures[f"{kind}.{way}.largest_difference"] for way in backends]
        parts += [
            f"**{title}**",
            table(["", *COLUMNS.values()], [row(kind, way) for way in titles]),
            f"Largest difference of any metric: {max(differences):.1g} (of 100).",
        ]
    count = f"{figures['many.images']:,.0f} images, {figures['many.detections']:,.0f} detections"
    head = [f"boxes, {count}", *COLUMNS.values()]
    return [*parts, table(head, [row("many", backends[-1])])]


def _cell(figures: Figures, way: str, column: str) -> str:
    text = digits(figures[f"{way}.{column}"], 3)
    ratio = figures.get(f"{way}.{column.removesuffix('_s')}.ratio")
    return text if ratio is None else f"{text} ({digits(ratio, 2)})"
