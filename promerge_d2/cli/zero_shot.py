"""Score predictions or a detector on every zero-shot benchmark that is present, on one page.

Examples:
    promerge zero-shot --predictions labels.json --output zero_shot
    promerge zero-shot --predictions release=labels --predictions best=labels_best \
        --datasets coco,kitti --output zero_shot
    promerge zero-shot --config-file promerge_cascade.yaml \
        --output zero_shot MODEL.WEIGHTS output/model_final.pth

Predictions are a file (scored on every data set that has its images) or a folder with a file for
each data set, cls_agnostic_coco.json or coco.json and so on. --config-file goes together with
--predictions: its run is called detector. What a detector predicts is kept in such a folder,
OUTPUT/predictions/detector, image by image: after a stop of any kind, the same command goes on, and
another detector is refused there. Several runs are compared with the first one that
has predictions on a data set. In OUTPUT: index.html, results.json, results.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promerge_d2.cli.parser import ArgumentParser, find_config
from promerge_d2.coco.ground_truth import GroundTruth, read_ground_truth
from promerge_d2.data.benchmarks import DataSet, choose_data_sets
from promerge_d2.data.datasets import datasets_root
from promerge_d2.evaluation.matches import BACKENDS
from promerge_d2.evaluation.zero_shot import Run, Score, score
from promerge_d2.pseudo_labels import RunSummary, print_summary
from promerge_d2.pseudo_labels.inputs import ImageFile, ImageList
from promerge_d2.utils.errors import EXIT_FAILURES, EXIT_OK, UserError
from promerge_d2.utils.files import check_writable, path_inside
from promerge_d2.visualization.zero_shot import write_all

if TYPE_CHECKING:
    from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(
        prog="promerge zero-shot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--predictions",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a prediction file, or a folder with DATA_SET.json files; may be repeated",
    )
    parser.add_argument(
        "--config-file", "--config", type=find_config, help="of a detector to score"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs over the config, last"
    )
    parser.add_argument(
        "--datasets",
        default="all",
        metavar="NAMES",
        help="all (default), six (those of the ProMerge paper), or names with commas between",
    )
    parser.add_argument(
        "--set",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGES"),
        help="a data set of your own, beside --datasets; may be repeated",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=datasets_root(),
        help="the folder of the data sets; default: $DETECTRON2_DATASETS, else datasets",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--detections",
        type=int,
        default=100,
        metavar="N",
        help="match up to N an image and add ARN where predictions keep more than 100 (default "
        "100); AP and the other AR always count 100",
    )
    parser.add_argument(
        "--only-listed",
        action="store_true",
        help="score on the images that every run lists; by default the others count as images "
        "without predictions",
    )
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0])
    parser.add_argument(
        "--resamples", type=int, default=1000, help="of the bootstrap; 0 for no intervals"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument(
        "--pictures", type=int, default=2, help="best and worst images to show for each run"
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="processes of the detector")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Score, print the tables, write the page and the files."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if not args.predictions and not args.config_file:
        parser.error("give --predictions or --config-file")
    if args.detections < 100:
        parser.error("--detections starts at 100")
    check_writable(args.output / "index.html")
    own = [DataSet(name, name, Path(json), Path(images)) for name, json, images in args.set]
    chosen = choose_data_sets(args.datasets.split(","), args.root, own)
    runs = [parse_run(text) for text in args.predictions]
    not_run: dict[str, str] = {}
    present = []
    for data_set in chosen:
        reason = data_set.missing(images_too=args.config_file is not None)
        if reason:
            not_run[data_set.name] = reason
        else:
            present.append(data_set)
    if not present:
        reasons = "\n".join(f"{name}: {reason}" for name, reason in not_run.items())
        raise UserError(f"none of the data sets is present under {args.root}:\n{reasons}")
    failed = 0
    if args.config_file:
        run, failed = run_detector(args, present)
        runs.append(run)
    if len({run.name for run in runs}) < len(runs):
        raise UserError("two runs have the same name; tell them apart with NAME=PATH")
    scores: list[Score] = []
    for data_set in present:
        logger.info("scoring on %s", data_set.name)
        found, without = score(
            data_set,
            runs,
            detections=args.detections,
            backend=args.backend,
            resamples=args.resamples,
            seed=args.seed,
            only_listed=args.only_listed,
        )
        scores += found
        not_run |= {f"{data_set.name}, {run}": reason for run, reason in without.items()}
    if not scores:
        reasons = "\n".join(f"{name}: {reason}" for name, reason in not_run.items())
        raise UserError(f"no run could be scored on any data set:\n{reasons}")
    print(write_all(args.output, scores, not_run, args.pictures))
    print(f"page: {args.output / 'index.html'}")
    return EXIT_FAILURES if failed else EXIT_OK


def parse_run(text: str) -> Run:
    """Read ``NAME=PATH``, or a path whose stem is the name."""
    name, found, path = text.partition("=")
    if not found:
        name, path = Path(text).stem, text
    if not re.fullmatch(r"[\w.+-]+", name) or name in (".", "..", "truth"):
        raise UserError(
            f"{name!r} cannot name a run; use letters, digits, dots and hyphens: NAME=PATH"
        )
    if not Path(path).exists():
        raise UserError(f"the predictions {path} do not exist")
    return Run(name, Path(path))


def run_detector(args: argparse.Namespace, data_sets: list[DataSet]) -> tuple[Run, int]:
    """Predict with the detector, in one process a GPU, on from where a run before stopped.

    Returns:
        The run, and how many images could not be read.
    """
    from promerge_d2.engine.detector import DetectorMaskGenerator
    from promerge_d2.engine.launch import launch_processes
    from promerge_d2.engine.setup import check_device, check_weights, read_config
    from promerge_d2.pseudo_labels import merge_labels

    cfg = read_config(args.config_file, args.opts)
    cfg.TEST.DETECTIONS_PER_IMAGE = max(cfg.TEST.DETECTIONS_PER_IMAGE, args.detections)
    check_device(cfg)
    check_weights(cfg, eval_only=True)
    cfg.freeze()
    folder = args.output / "predictions" / "detector"
    work = (cfg, Path(args.config_file).name, data_sets, folder)
    found = launch_processes(detect, work, cfg.MODEL.DEVICE, args.num_gpus)
    summaries = (  # one process returns them
        found
        if isinstance(found, list)
        else [merge_labels(folder / f"{data_set.name}.json") for data_set in data_sets]
    )
    for data_set, summary in zip(data_sets, summaries, strict=True):
        print(f"{summary.masks} detections on {summary.images} images of {data_set.name}")
        print_summary(summary, DetectorMaskGenerator.reasons)
    return Run("detector", folder), sum(len(summary.failures) for summary in summaries)


def detect(cfg: CfgNode, config: str, data_sets: list[DataSet], folder: Path) -> list[RunSummary]:
    """Detect on this process's shard of each data set's images."""
    from detectron2.utils import comm

    from promerge_d2.engine.detector import DetectorMaskGenerator
    from promerge_d2.pseudo_labels import LocalEngine, choose_workers, label_images

    records = {"masks": True, "boxes_from_masks": cfg.TEST.BOXES_FROM_MASKS}
    detector = DetectorMaskGenerator(cfg, evaluation=records)
    shard, shards = comm.get_rank(), comm.get_world_size()
    summaries = []
    for data_set in data_sets:
        truth = read_ground_truth(data_set.json_file)
        detector.processor = dataclasses.replace(
            detector.processor, evaluation={**records, "masks": not truth.box_only}
        )
        images = images_of(truth, data_set.image_root)
        engine = LocalEngine(choose_workers(len(images.files), shards))
        output = folder / f"{data_set.name}.json"
        summaries.append(
            label_images(images, output, detector, config, None, engine, shard, shards)
        )
    return summaries


def images_of(truth: GroundTruth, root: Path) -> ImageList:
    """List a ground truth's images with its ids, in its order.

    Raises:
        UserError: a file name leads out of the folder.
    """
    for image in truth.images.values():
        path_inside(root, image.file_name, f"{truth.name}: image {image.id!r}")
    return ImageList(
        root, tuple(ImageFile.at(root, i.file_name or "", i.id) for i in truth.images.values())
    )
