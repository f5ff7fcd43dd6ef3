"""The labelers side by side, and a device if there is one.

Latency is one process with one thread on both sides of every ratio; throughput is several such
processes at once. A ratio is a quotient of sums over the same images, each image's seconds being
the median of its repeats.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import torch

from benchmarks.measure import Samples, mean, ratio, spread
from benchmarks.report import Results
from benchmarks.speed import tasks
from benchmarks.speed.compare import identical, iou, ious
from benchmarks.speed.device import device_parts, measure_device
from benchmarks.speed.harness import Benchmark, Plan, after, plan_from, running, total
from benchmarks.speed.labeler_tables import labeler_parts, plot
from benchmarks.speed.methods import METHODS
from benchmarks.speed.sweeps import measure_sweeps, sweep_parts
from benchmarks.speed.tasks import BEFORE, RELEASED
from promerge_d2.labeler import ProMergeConfig, grid_masks
from promerge_d2.labeler.refine import REFINERS, check_refiner
from promerge_d2.utils.errors import UserError

EXACT = "dense_crf"  # the refiner that the others are held against
FEWEST, MOST = 3, 6  # masks of an image whose refinement is measured
OTHER_TAU_B = (0.3, 0.4, 0.5, 0.6, 0.7)  # for more masks where an image has too few
ADDED_AREA = (0.005, 0.5)  # of the grid; smaller ones a refiner wipes out
TOO_ALIKE = 0.8  # IoU with a mask that is there already
REGIONS = ("best", "fast")  # methods with a grid of their own
SAME = 0.95  # IoU from which two refined masks count as the same


def measure(args: argparse.Namespace) -> Results:
    """Measure the labelers and the device; draw ``--plot``.

    Raises:
        UserError: images that cannot be read, weights that are missing.
    """
    results = measure_speed(plan_from(args))
    if args.plot:
        plot(results.figures, args.plot)
    return results


def measure_speed(plan: Plan) -> Results:
    """Measure everything that the plan names, see ``measure``."""
    workload = plan.workload
    with running(plan) as bench:
        if not workload.random_weights:
            measure_labelers(bench)
        if workload.device != "cpu" or workload.random_weights:
            measure_device(bench)
        else:
            bench.notes.append("A GPU is not measured: --device cuda.")
    figures = bench.figures
    bench.results.parts = [*labeler_parts(figures), *sweep_parts(figures), *device_parts(figures)]
    return bench.results


def measure_labelers(bench: Benchmark) -> None:
    """Measure all methods side by side, and the sweeps."""
    before = bench.extract("ours", range(len(bench.plan.images)))
    merged = measure_masks(bench)
    missing = why_missing(EXACT)
    if missing:
        bench.notes.append(f"Refinement is not measured: {missing}.")
    else:
        measure_refiners(bench, merged)
    if missing and bench.config.refine != "none":
        bench.notes.append(
            "The whole way is not measured, since the released-style methods cannot refine; it "
            "can be without refinement: --set refine=none."
        )
        return
    measure_whole(bench, before)
    measure_throughput(bench)
    if bench.plan.full:
        measure_sweeps(bench)


def why_missing(refiner: str) -> str | None:
    """Say why a refiner cannot run here; None if it can."""
    try:
        check_refiner(refiner)
    except UserError as error:
        return str(error)
    return None


def measure_masks(bench: Benchmark) -> list[np.ndarray]:
    """Measure prompts, filter and merging on all images; return the masks found."""
    images = range(len(bench.plan.images))
    found = {}
    for name, repeats in (
        ("released", bench.plan.slow_repeats),
        ("ours", bench.plan.repeats),
    ):
        finished = bench.finish(name, images, repeats, refine="none")
        found[name] = finished
        bench.figures.put(f"masks.{name}_s", mean, finished.seconds["masks"])
    slow, fast = (found[name].seconds["masks"] for name in ("released", "ours"))
    bench.figures.put("masks.ratio_to_released", ratio, slow, fast)
    bench.figures["masks.images"] = len(images)
    bench.figures["masks.images_identical"] = identical(
        found["released"].merged, found["ours"].merged
    )
    rows, columns = (-(-side // bench.config.stride) for side in bench.config.grid)
    bench.figures["masks.prompts"] = rows * columns
    bench.figures["masks_per_image"] = float(np.mean([len(m) for m in found["ours"].merged]))
    return found["ours"].merged


def measure_refiners(bench: Benchmark, merged: list[np.ndarray]) -> None:
    """Measure every refiner, and the released way, on images with enough masks."""
    chosen, added = {}, 0
    for index, masks in enumerate(merged):
        features = tasks.load_prepared(bench.folder / "ours", index).features[0]
        some = masks_to_refine(features, masks, bench.config)
        if len(some) >= FEWEST:
            chosen[index] = some
            added += max(0, len(some) - len(masks))
    if not chosen:
        bench.notes.append("Refinement is not measured: no image has enough masks.")
        return
    runs = {}
    for name in (RELEASED, *(name for name, refiner in REFINERS.items() if refiner)):
        repeats = bench.plan.slow_repeats if name in (RELEASED, EXACT) else bench.plan.repeats
        what = f"{len(chosen)} images, {repeats} times"
        args = (name, bench.folder / "ours", chosen, repeats)
        runs[name] = bench.call(f"refiner.{name}", what, tasks.refine, *args)
    released, exact = runs[RELEASED]
    for name, (seconds, refined) in runs.items():
        agreement = ious(refined, exact)
        prefixes = [f"refiner.{name}"]
        prefixes += ["refine"] if name == bench.config.refine else []  # what users get
        for prefix in prefixes:
            bench.figures.put(f"{prefix}.seconds_per_image", mean, seconds)
            bench.figures.put(f"{prefix}.ratio_to_released", ratio, released, seconds)
            bench.figures[f"{prefix}.mean_iou"] = float(agreement.mean())
            bench.figures[f"{prefix}.share_above_0.95"] = float((agreement > SAME).mean())
            bench.figures[f"{prefix}.min_iou"] = float(agreement.min())
    count = sum(map(len, chosen.values()))
    bench.figures["refine.images"] = len(chosen)
    bench.figures["refine.masks"] = count
    bench.figures["refine.masks_added"] = added
    bench.notes.append(
        f"Refinement is measured on {len(chosen)} images with {FEWEST} to {MOST} masks each, "
        f"{count} in all; {added} of them were added where the labeler finds fewer, found at "
        "another tau_b or before merging."
    )


def measure_whole(bench: Benchmark, before: dict[str, Samples]) -> None:
    """Measure every method from file to records.

    Args:
        bench: the run.
        before: stages ``BEFORE`` of our features, of all images.
    """
    plan, figures = bench.plan, bench.figures
    whole = spread(len(plan.images), plan.whole)
    reference = whole[: plan.reference]
    released_before = bench.extract("released", whole)
    figures["features.max_difference"] = max(
        feature_difference(bench, ours, place) for place, ours in enumerate(whole)
    )
    timed = {"ours": before} | {name: bench.extract(name, whole) for name in REGIONS}
    stages: dict[str, dict[str, Samples]] = {}
    merged = {}
    for name, method in METHODS.items():
        images = reference if name == "maskcut_reference" else whole
        repeats = {"ours": plan.repeats, "maskcut_reference": 1}.get(name, plan.slow_repeats)
        source, places = source_of(name, images)
        finished = bench.finish(name, places, repeats, source=source)
        samples = timed[source]
        if method.extractor is METHODS["released"].extractor:
            samples, places = released_before, list(range(len(images)))
        stages[name] = {stage: samples[stage][places] for stage in BEFORE} | finished.seconds
        merged[name] = finished.merged
        figures[f"{name}.images"] = len(images)
        figures[f"{name}.masks_per_image"] = float(np.mean(finished.records))
        figures[f"{name}.refined_per_image"] = float(np.mean([*map(len, finished.merged)]))
        figures[f"{name}.cpu_share"] = round(finished.cpu_share, 3)
        for stage, seconds in stages[name].items():
            figures.put(f"{name}.{stage}_s", mean, seconds)
        figures.put(f"{name}.after_features_s", mean, after(stages[name]))
        figures.put(f"{name}.total_s", mean, total(stages[name]))
        figures.put(f"{name}.images_per_s", lambda s: 1 / mean(s), total(stages[name]))
    ours = stages["ours"]
    figures.put("total.ratio_to_released", ratio, total(stages["released"]), total(ours))
    figures.put("after_features.ratio_to_released", ratio, after(stages["released"]), after(ours))
    figures.put("features.ratio_to_released", ratio, released_before["features"], ours["features"])
    figures.put("total.bound_by_features", ratio, total(stages["released"]), ours["features"])
    figures.put("total.best_to_ours", ratio, total(stages["best"]), total(ours))
    compare_with_reference(bench, ours, stages["maskcut_reference"], merged)


def source_of(name: str, images: list[int]) -> tuple[str, list[int]]:
    """Say which features a method starts from, so that all but ``REGIONS`` see the same bits.

    Args:
        name: of the method.
        images: places in the plan's list.

    Returns:
        The label of ``Benchmark.extract``, and the images' places in its folder.
    """
    if (
        name in REGIONS
    ):  # the grid has the image's shape; only the images of the whole way are there
        return name, list(range(len(images)))
    return "ours", images


def compare_with_reference(
    bench: Benchmark,
    ours: dict[str, Samples],
    slow: dict[str, Samples],
    merged: dict[str, list[np.ndarray]],
) -> None:
    """Add the ratios to ``maskcut_reference``, on the images that it did."""
    figures = bench.figures
    count = len(merged["maskcut_reference"])
    ours = {stage: samples[:count] for stage, samples in ours.items()}
    figures.put("to_maskcut.ours.total_s", mean, total(ours))
    figures.put("to_maskcut.ours.after_features_s", mean, after(ours))
    figures.put("total.ratio_to_maskcut", ratio, total(slow), total(ours))
    same_features = total({**slow, "features": ours["features"]})
    figures.put("total.ratio_to_maskcut_same_features", ratio, same_features, total(ours))
    figures.put("total.bound_by_features_to_maskcut", ratio, total(slow), ours["features"])
    figures.put("after_features.ratio_to_maskcut", ratio, after(slow), after(ours))
    figures["maskcut.images_identical"] = identical(
        merged["maskcut_reference"], merged["maskcut"][:count]
    )


def feature_difference(bench: Benchmark, ours: int, place: int) -> float:
    """Compare released-style features with ours: largest difference over the largest feature."""
    mine = tasks.load_prepared(bench.folder / "ours", ours).features
    theirs = tasks.load_prepared(bench.folder / "released", place).features
    return float((mine - theirs).abs().max() / mine.abs().max())


def measure_throughput(bench: Benchmark) -> None:
    """Measure everything after the features, in several processes of one thread at once."""
    plan, figures = bench.plan, bench.figures
    whole = spread(len(plan.images), plan.whole)
    seconds = {}
    for name in METHODS:
        images = whole[: plan.reference] if name == "maskcut_reference" else whole
        source, places = source_of(name, images)
        repeats = 2 * plan.repeats if name == "ours" else 1
        seconds[name] = bench.finish_together(name, places, repeats, source)
        rate = f"{name}.throughput_images_per_s"
        figures.put(rate, lambda s: plan.processes / mean(s), seconds[name])
    figures["throughput.processes"] = plan.processes
    for other, name in (("released", "released"), ("maskcut", "maskcut_reference")):
        slow = seconds[name]
        ours = seconds["ours"][: len(slow.values)]
        figures.put(f"after_features.throughput_ratio_to_{other}", ratio, slow, ours)


def masks_to_refine(
    features: torch.Tensor, merged: np.ndarray, config: ProMergeConfig
) -> np.ndarray:
    """Choose the masks of an image whose refinement is measured.

    Args:
        features: (C, H, W) raw float32.
        merged: (M, H, W) bool, found with ``config``.
        config: the labeler's.

    Returns:
        (K, H, W) bool: the first ``MOST`` of ``merged``; where these are fewer than ``FEWEST``,
        filled up to ``FEWEST`` with different ones of ``ADDED_AREA``: found at ``OTHER_TAU_B``,
        and after these, masks before merging.
    """
    found = [
        grid_masks(features, dataclasses.replace(config, tau_b=tau_b))
        for tau_b in (config.tau_b, *OTHER_TAU_B)
    ]
    found = [stages for stages in found if not stages.reason]
    more = [mask for stages in found if stages.merged is not None for mask in stages.merged]
    for stages in found:
        more += [] if stages.pruned is None else list(stages.pruned[::-1])  # by descending area
    masks = list(merged[:MOST])
    for mask in more:
        if len(masks) >= FEWEST:
            break
        fits = ADDED_AREA[0] <= mask.mean() <= ADDED_AREA[1]
        if fits and all(iou(mask, other) < TOO_ALIKE for other in masks):
            masks.append(mask)
    return np.array(masks, bool).reshape(-1, *merged.shape[1:])
