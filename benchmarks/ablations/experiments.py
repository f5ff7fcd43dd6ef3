"""The experiments: what each varies, and how its rows are drawn.

Settings are given as text, so that a preset may read them as it likes (one tau_b or several).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from benchmarks.ablations import plots
from benchmarks.ablations.painted import CASES, SEED, paint_case
from benchmarks.ablations.results import Results, Row
from benchmarks.ablations.sweep import LabelledImages, Point, sweep
from promerge_d2.features import BACKBONES, Backbone
from promerge_d2.features.weights import WeightsError, cached_path, find_weights
from promerge_d2.labeler import Labeler
from promerge_d2.labeler.promerge.filtering import FILTERS
from promerge_d2.pseudo_labels import choose_workers

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

    def results(self, name: str, run: dict[str, Any], data: dict[str, Any]) -> Results:
        """The table of an experiment whose rows all follow from this labeler and these images."""
        return Results(self.output, name, {**run, "data": data})

    def sweep(
        self, results: Results, points: Sequence[Point], labeler: Labeler, images: LabelledImages
    ) -> None:
        """``sweep`` with the folder and processes of this command."""
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
    """

    title: str
    run: Callable[[str, Setup], None]
    plot: Callable[[Sequence[Row], Path], None]
    painted: bool = False


def run_points(points: Callable[[Labeler], list[Point]], name: str, setup: Setup) -> None:
    """Settings of one labeler on the labelled images."""
    labeler = setup.make()
    run = labeler.describe(setup.preset)
    results = setup.results(name, run, setup.images.describe())
    setup.sweep(results, points(labeler), labeler, setup.images)


def prompts(labeler: Labeler) -> list[Point]:
    """Strides between prompts, and how many prompts that makes."""
    rows, columns = labeler.config.grid
    return [
        Point(
            {"stride": str(s), "prompts": str(-(-rows // s) * -(-columns // s))}, {"stride": str(s)}
        )
        for s in STRIDES
    ]


def filters(_: Labeler) -> list[Point]:
    """The cascade filter, each of its tests alone, and none."""
    return [Point({"filter": name}, {"background_filter": name}) for name in FILTERS]


def tau_b(_: Labeler) -> list[Point]:
    """The cosine above which a patch belongs to a prompt's mask."""
    return [Point({"tau_b": value}, {"tau_b": value}) for value in TAU_B]


def merging(_: Labeler) -> list[Point]:
    """Both thresholds of merging."""
    points = []
    for ioa, feature in itertools.product(TAU_MERGE, TAU_MERGE):
        settings = {"tau_merge_ioa": ioa, "tau_merge_f": feature}
        points.append(Point(settings, settings))
    return points


def run_facets(name: str, setup: Setup) -> None:
    """What the last block gives: query, key, value or token."""
    labeler = setup.make(facet=None)
    run = labeler.describe(setup.preset)
    del run["backbone"]["facet"]
    results = setup.results(name, run, setup.images.describe())
    for facet in labeler.extractor.backbone.facets:
        setup.sweep(results, [Point({"facet": facet})], setup.make(facet=facet), setup.images)


def run_backbones(name: str, setup: Setup) -> None:
    """Networks and weights, each with its own default facet, and centred as its entry says."""
    for backbone, weights in setup.backbones:
        labeler = setup.make(backbone=backbone, weights=weights, facet=None)
        run = labeler.describe(setup.preset)
        del run["description"], run["backbone"]
        results = setup.results(name, run, setup.images.describe())
        extractor = labeler.extractor
        columns = {
            "backbone": backbone,
            "weights": extractor.weights_sha256[:6],
            "features": extractor.facet + (" centred" if extractor.center else ""),
        }
        setup.sweep(results, [Point(columns)], labeler, setup.images)


def run_background(name: str, setup: Setup) -> None:
    """The whole labeler on painted scenes."""
    labeler = setup.make()
    cases = {}
    for case in CASES:
        cases[case] = LabelledImages.read(*paint_case(case, setup.scenes, setup.output / name))
    digest = hashlib.sha256(repr([images.describe() for images in cases.values()]).encode())
    data = {"scenes": setup.scenes, "seed": SEED, "sha256": digest.hexdigest()}
    results = setup.results(name, labeler.describe(setup.preset), data)
    for case, images in cases.items():
        setup.sweep(results, [Point({"case": case})], labeler, images)


def offline_backbones() -> list[str]:
    """Names of the backbones whose weights are on this machine."""

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
    ),
    "filters": Experiment(
        "Background filter: both tests, one of them, none",
        partial(run_points, filters),
        partial(plots.bars, column="filter", panels=(*QUALITY, ("empty",))),
    ),
    "tau_b": Experiment(
        "tau_b: how alike a prompt and the patches of its mask are",
        partial(run_points, tau_b),
        partial(plots.curves, column="tau_b", panels=(*QUALITY, ("empty",))),
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
    ),
    "facets": Experiment(
        "Facets of the last block",
        run_facets,
        partial(plots.bars, column="facet", panels=(*QUALITY, ("empty",))),
    ),
    "backbones": Experiment(
        "Backbones",
        run_backbones,
        partial(plots.bars, column="backbone", panels=(*QUALITY, ("empty",))),
    ),
    "background": Experiment(
        "Background: painted scenes that try the rule of the edge",
        run_background,
        partial(plots.scenes, column="case", names=("recall", "AP", "empty")),
        painted=True,
    ),
}
