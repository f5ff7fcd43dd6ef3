"""The experiments: what each varies, of which labeler, and how its rows are drawn."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from benchmarks.ablations import ceilings, plots
from benchmarks.ablations.painted import CASES, SEED, paint_case
from benchmarks.ablations.results import Results, Row
from benchmarks.ablations.sweep import LabelledImages, Point, keep_features, sweep
from promerge_d2.features import BACKBONES, Backbone
from promerge_d2.features.weights import WeightsError, cached_path, find_weights
from promerge_d2.labeler import Labeler
from promerge_d2.labeler.promerge.filtering import FILTERS
from promerge_d2.pseudo_labels import choose_workers
from promerge_d2.utils.errors import UserError

STRIDES = tuple(range(2, 13))
TAU_B = tuple(f"{value / 20:.2f}" for value in range(17))  # 0 to 0.8 by 0.05
TAU_MERGE = tuple(f"{value / 100:.2f}" for value in range(50, 100, 5))
SCENES = 12  # painted scenes a case, so that each combination of touched sides is there
QUALITY = (("AP",), ("AR100",), ("precision", "recall"))


class MakeLabeler(Protocol):
    """Makes the labeler of the command line with some of its options replaced."""

    def __call__(self, **options: object) -> Labeler:
        """``backbone``, ``weights`` and ``facet`` as ``Labeler.from_preset`` takes them."""


@dataclass(frozen=True)
class Setup:
    """What all experiments of a command share.

    Attributes:
        make: the labeler.
        preset: name of its preset, for the record.
        output: folder of tables and plots.
        cache: folder of features and refined masks.
        images: labelled images; None where only painted ones are asked for.
        backbones: (name, weights file or None) to compare.
        scenes: painted scenes a case.
        workers: processes; None as pays.
    """

    make: MakeLabeler
    preset: str
    output: Path
    cache: Path
    images: LabelledImages | None
    backbones: Sequence[tuple[str, str | None]]
    scenes: int = SCENES
    workers: int | None = None

    @property
    def labelled(self) -> LabelledImages:
        """The images, of an experiment that is not painted."""
        assert self.images is not None
        return self.images

    def results(self, name: str, run: dict[str, Any], data: dict[str, Any]) -> Results:
        """Open the table of an experiment; its rows follow from this labeler and these images."""
        return Results(self.output, name, {**run, "data": data})

    def sweep(
        self, results: Results, points: Sequence[Point], labeler: Labeler, images: LabelledImages
    ) -> None:
        """Call ``sweep`` with the folder and processes of this command."""
        count = choose_workers(len(images.files)) if self.workers is None else self.workers
        sweep(results, points, labeler, images, self.cache, count)


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    Attributes:
        title: its question.
        run: fills its table; takes its name and the setup.
        plot: draws rows into a PNG.
        painted: it needs no labelled images.
        labeler: the labeler whose settings it varies; None goes with every labeler.
    """

    title: str
    run: Callable[[str, Setup], None]
    plot: Callable[[Sequence[Row], Path], None]
    painted: bool = False
    labeler: str | None = None


def run_points(points: Callable[[Labeler], list[Point]], name: str, setup: Setup) -> None:
    """Try settings of one labeler on the labelled images."""
    labeler = setup.make()
    run = labeler.describe(setup.preset)
    results = setup.results(name, run, setup.labelled.describe())
    setup.sweep(results, points(labeler), labeler, setup.labelled)


def prompts(labeler: Labeler) -> list[Point]:
    """List strides between prompts, and how many prompts that makes."""
    rows, columns = labeler.config.grid
    counts = {stride: -(-rows // stride) * -(-columns // stride) for stride in STRIDES}
    return [
        Point({"stride": str(stride), "prompts": str(count)}, {"stride": str(stride)})
        for stride, count in counts.items()
    ]


def filters(_: Labeler) -> list[Point]:
    """List the cascade filter, each of its tests alone, and none."""
    return [Point({"filter": name}, {"background_filter": name}) for name in FILTERS]


def tau_b(_: Labeler) -> list[Point]:
    """List cosines above which a patch belongs to a prompt's mask."""
    return [Point({"tau_b": value}, {"tau_b": value}) for value in TAU_B]


def merging(_: Labeler) -> list[Point]:
    """List pairs of both thresholds of merging."""
    pairs = itertools.product(TAU_MERGE, TAU_MERGE)
    settings = [{"tau_merge_ioa": ioa, "tau_merge_f": feature} for ioa, feature in pairs]
    return [Point(setting, setting) for setting in settings]


def run_facets(name: str, setup: Setup) -> None:
    """Try what the last block gives: query, key, value or token."""
    labeler = setup.make(facet=None)
    run = labeler.describe(setup.preset)
    del run["backbone"]["facet"]
    results = setup.results(name, run, setup.labelled.describe())
    for facet in labeler.extractor.backbone.facets:
        setup.sweep(results, [Point({"facet": facet})], setup.make(facet=facet), setup.labelled)


def run_backbones(name: str, setup: Setup) -> None:
    """Try networks and weights, each with its own default facet, and centred as its entry says."""
    for backbone, weights in setup.backbones:
        labeler = setup.make(backbone=backbone, weights=weights, facet=None)
        run = labeler.describe(setup.preset)
        del run["description"], run["backbone"]
        results = setup.results(name, run, setup.labelled.describe())
        extractor = labeler.extractor
        columns = {
            "backbone": backbone,
            "weights": (extractor.weights_sha256 or "")[:6],
            "features": extractor.facet + (" centred" if extractor.center else ""),
        }
        setup.sweep(results, [Point(columns)], labeler, setup.labelled)


def run_background(name: str, setup: Setup) -> None:
    """Try the whole labeler on painted scenes."""
    labeler = setup.make()
    cases = {}
    for case in CASES:
        cases[case] = LabelledImages.read(*paint_case(case, setup.scenes, setup.output / name))
    digest = hashlib.sha256(repr([images.describe() for images in cases.values()]).encode())
    data = {"scenes": setup.scenes, "seed": SEED, "sha256": digest.hexdigest()}
    results = setup.results(name, labeler.describe(setup.preset), data)
    for case, images in cases.items():
        setup.sweep(results, [Point({"case": case})], labeler, images)


def run_candidates(name: str, setup: Setup) -> None:
    """Measure what each stage of ``regions`` could have at best."""
    labeler, images = setup.make(), setup.labelled
    if images.iou_type != "segm":
        raise UserError(f"{name} needs ground truth with masks, and this has boxes only")
    results = setup.results(name, labeler.describe(setup.preset), images.describe())
    if not results.has({"stage": ceilings.LAST}):
        count = choose_workers(len(images.files)) if setup.workers is None else setup.workers
        with keep_features(labeler, images, setup.cache, count, name) as kept:
            ceilings.fill(results, labeler.config, images, kept)


def offline_backbones() -> list[str]:
    """Name the backbones whose weights are on this machine."""

    def is_here(backbone: Backbone) -> bool:
        if backbone.url is not None:
            return cached_path(backbone.url).is_file()
        try:
            find_weights(backbone)
        except WeightsError:
            return False
        return True

    return [name for name, backbone in BACKBONES.items() if is_here(backbone)]


EXPERIMENTS = {
    "prompts": Experiment(
        "Number of prompts against quality and speed",
        partial(run_points, prompts),
        partial(plots.curves, column="stride", panels=(*QUALITY, ("seconds",)), below="prompts"),
        labeler="promerge",
    ),
    "filters": Experiment(
        "Background filter: both tests, one of them, none",
        partial(run_points, filters),
        partial(plots.named_bars, column="filter", panels=(*QUALITY, ("empty",))),
        labeler="promerge",
    ),
    "tau_b": Experiment(
        "tau_b: how alike a prompt and the patches of its mask are",
        partial(run_points, tau_b),
        partial(plots.curves, column="tau_b", panels=(*QUALITY, ("empty",))),
        labeler="promerge",
    ),
    "merging": Experiment(
        "Thresholds of merging: overlap and features",
        partial(run_points, merging),
        partial(
            plots.heatmaps,
            across="tau_merge_ioa",
            up="tau_merge_f",
            names=("AP", "AR100", "masks"),
        ),
        labeler="promerge",
    ),
    "facets": Experiment(
        "Facets of the last block",
        run_facets,
        partial(plots.named_bars, column="facet", panels=(*QUALITY, ("empty",))),
    ),
    "backbones": Experiment(
        "Backbones",
        run_backbones,
        partial(plots.named_bars, column="backbone", panels=(*QUALITY, ("empty",))),
    ),
    "candidates": Experiment(
        "Ceilings: how well objects are covered by what each stage hands on",
        run_candidates,
        partial(plots.named_bars, column="stage", panels=(("AR",), ("ARs", "ARm", "ARl"))),
        labeler="regions",
    ),
    "background": Experiment(
        "Background: painted scenes that try the rule of the edge",
        run_background,
        partial(plots.scenes, column="case", names=("recall", "AP", "empty")),
        painted=True,
    ),
}
