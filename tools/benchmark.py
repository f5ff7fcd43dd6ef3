#!/usr/bin/env python
"""Measure the labeler beside the released way and beside normalised cuts, in one run.

Without arguments: the sample photographs at 60x60 patches, at most ten minutes on two cores that
have nothing else to do. docs/benchmark.md explains every figure.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.speed.evaluation import evaluation_markdown, run_evaluation
from benchmarks.speed.harness import Plan, spread
from benchmarks.speed.measure import Figures
from benchmarks.speed.methods import Workload
from benchmarks.speed.report import markdown, plot, summary, write_markdown
from benchmarks.speed.run import run_benchmark
from benchmarks.speed.training import TrainingPlan, run_training, training_markdown
from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.features import BACKBONES, get_backbone
from promerge_d2.features.weights import OFFLINE_BACKBONE
from promerge_d2.pseudo_labels import list_images
from promerge_d2.utils.errors import EXIT_OK, UserError
from promerge_d2.utils.files import check_writable, write_json

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "runs/quickstart/data"


def main() -> int:
    """Parse, measure, write."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="every figure under its name")
    parser.add_argument(
        "--markdown", type=Path, help="tables; in a file that has a block of them, it is replaced"
    )
    parser.add_argument("--plot", type=Path, help="picture (.png or .svg)")
    parser.add_argument("--images", help="folder, 'glob' or .txt list (the sample photographs)")
    parser.add_argument("--count", type=int, default=10, help="images, spread over the list (10)")
    parser.add_argument("--backbone", default=OFFLINE_BACKBONE, help=", ".join(BACKBONES))
    parser.add_argument("--weights", help="local weights file instead of the official one")
    parser.add_argument(
        "--random-weights", action="store_true", help="the network's speed without its weights"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (cpu)")
    parser.add_argument("--full", action="store_true", help="sweep grids, prompts, masks, workers")
    parser.add_argument(
        "--evaluation",
        action="store_true",
        help="measure evaluation instead, beside plain pycocotools on synthetic detections "
        "(docs/zero_shot.md); takes no images and no plot",
    )
    parser.add_argument(
        "--store", action="store_true", help="nothing but the store of labels and its workers"
    )
    parser.add_argument(
        "--training",
        action="store_true",
        help="measure the training recipe instead: 200 iterations of it on a GPU, 20 small ones on "
        "a CPU (docs/benchmark.md); takes --images with --labels (the sample scenes)",
    )
    parser.add_argument("--labels", type=Path, help="COCO JSON of --images, for --training")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a labeler setting, such as grid=34; can be repeated",
    )
    args = parser.parse_args()
    for file in filter(None, (args.json, args.markdown, args.plot)):
        check_writable(file)
    if args.labels and not args.training:
        raise UserError("--labels is for --training")
    if args.evaluation:
        figures = run_evaluation()
        return publish(args, figures, evaluation_markdown(figures))
    if args.training:
        return publish(args, *measure_training(args))
    settings = dict(pair.split("=", 1) for pair in args.set if "=" in pair)
    if len(settings) < len(args.set):
        raise UserError(f"--set takes NAME=VALUE, each name once, not {' '.join(args.set)}")
    images = list_images(args.images or sample("photos/images"))
    workload = Workload(
        get_backbone(args.backbone),
        weights=args.weights,
        random_weights=args.random_weights,
        device=args.device,
        settings=settings,
    )
    names = [images.names[place] for place in spread(len(images.names), args.count)]
    files = tuple(map(images.path, names))
    annotations = ROOT / "datasets/sample/annotations.json"
    results = run_benchmark(
        Plan(workload, files, full=args.full, store=args.store, annotations=annotations)
    )
    if args.json:
        write_json(args.json, dict(sorted(results.figures.items())), indent=1)
    if args.plot:
        plot(results, args.plot)
    if args.markdown:
        write_markdown(markdown(results), args.markdown)
    print(summary(results))
    return EXIT_OK


def measure_training(args: argparse.Namespace) -> tuple[Figures, str]:
    """The part of ``--training``."""
    if bool(args.images) != bool(args.labels):
        raise UserError("--training takes --images and --labels together, or neither")
    images, labels = args.images, args.labels
    if not images:
        images, labels = sample("test/images"), sample("test/annotations.json")
    iterations = 20 if args.device == "cpu" else 200
    recipe = ROOT / "configs/promerge_cascade.yaml"
    plan = TrainingPlan(recipe, Path(images), labels, args.device, iterations)
    figures = run_training(plan)
    return figures, training_markdown(figures, plan)


def publish(args: argparse.Namespace, figures: Figures, text: str) -> int:
    """Write and print what was measured."""
    if args.json:
        write_json(args.json, dict(sorted(figures.items())), indent=1)
    if args.markdown:
        write_markdown(text, args.markdown)
    print(text)
    return EXIT_OK


def sample(part: str) -> Path:
    """A file or folder of the sample data, made if it is not there."""
    command = [sys.executable, str(ROOT / "datasets/prepare_sample.py"), "--output", str(SAMPLE)]
    if subprocess.run(command, check=False).returncode:
        raise UserError("the sample data could not be made (see above); give --images")
    return SAMPLE / part


if __name__ == "__main__":
    run_tool(main)
