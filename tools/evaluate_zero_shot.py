"""Score predictions or a detector on every zero-shot benchmark that is present, on one page.

Examples:
    python tools/evaluate_zero_shot.py --predictions labels.json --output zero_shot
    python tools/evaluate_zero_shot.py --predictions release=labels --predictions best=labels_best \
        --datasets coco,kitti --output zero_shot
    python tools/evaluate_zero_shot.py --config-file configs/promerge_cascade.yaml \
        --output zero_shot MODEL.WEIGHTS output/model_final.pth

Predictions are a file (scored on every data set that has its images) or a folder with a file for
each data set, cls_agnostic_coco.json or coco.json and so on. --config-file goes together with
--predictions: its run is called detector. What a detector predicts is kept in such a folder,
OUTPUT/predictions/detector, and reused. Several runs are compared with the first one that
has predictions on a data set. In OUTPUT: index.html, results.json, results.csv, results.md.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from official.prepare import add_root
from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.evaluation.matches import BACKENDS
from promerge_d2.evaluation.zero_shot import DataSet, Run, Score, absent, choose, score
from promerge_d2.utils.errors import EXIT_OK, UserError
from promerge_d2.utils.files import check_writable
from promerge_d2.visualization.zero_shot import as_markdown, as_tables, write_all


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--predictions",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a prediction file, or a folder with DATA_SET.json files; may be repeated",
    )
    parser.add_argument("--config-file", "--config", help="of a detector to run and score")
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
    add_root(parser)
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
    args = parser.parse_args()
    if not args.predictions and not args.config_file:
        parser.error("give --predictions or --config-file")
    if args.detections < 100:
        parser.error("--detections starts at 100")
    return args


def main() -> int:
    """Score, print the tables, write the page and the files."""
    args = parse_args()
    check_writable(args.output / "index.html")
    own = [DataSet(name, name, Path(json), Path(images)) for name, json, images in args.set]
    chosen = choose(args.datasets.split(","), args.root, own)
    runs = [parse_run(text) for text in args.predictions]
    not_run: dict[str, str] = {}
    present = []
    for data_set in chosen:
        reason = absent(data_set, images_too=args.config_file is not None)
        if reason:
            not_run[data_set.name] = reason
        else:
            present.append(data_set)
    if not present:
        reasons = "\n".join(f"{name}: {reason}" for name, reason in not_run.items())
        raise UserError(f"none of the data sets is present under {args.root}:\n{reasons}")
    if args.config_file:
        runs.append(run_detector(args, present))
    if len({run.name for run in runs}) < len(runs):
        raise UserError("two runs have the same name; tell them apart with NAME=PATH")
    scores: list[Score] = []
    for data_set in present:
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
    print(as_markdown(as_tables(scores, not_run)))
    write_all(args.output, scores, not_run, args.pictures)
    print(f"page: {args.output / 'index.html'}")
    return EXIT_OK


def parse_run(text: str) -> Run:
    """``NAME=PATH``, or a path whose stem is the name."""
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


def run_detector(args: argparse.Namespace, data_sets: list[DataSet]) -> Run:
    """Predict with the detector, in one process a GPU; what is there already is reused."""
    from promerge_d2.engine.launch import launch_processes
    from promerge_d2.engine.setup import check_device, check_weights, read_config
    from promerge_d2.features import get_backbone

    cfg = read_config(args.config_file, args.opts)
    cfg.TEST.DETECTIONS_PER_IMAGE = max(cfg.TEST.DETECTIONS_PER_IMAGE, args.detections)
    check_device(cfg)
    check_weights(cfg, eval_only=True)
    cfg.freeze()
    folder = args.output / "predictions" / "detector"
    launch_processes(detect_all, (cfg, data_sets, folder), cfg.MODEL.DEVICE, args.num_gpus)
    about = ""
    if "frozen_vit" in cfg.MODEL.BACKBONE.NAME:
        about = f"backbone: {get_backbone(cfg.MODEL.FROZEN_VIT.BACKBONE).training}"
    return Run("detector", folder, about)


def detect_all(cfg: object, data_sets: list[DataSet], folder: Path) -> None:
    """One process's share of the detections."""
    from promerge_d2.engine.detector import load_detector
    from promerge_d2.engine.zero_shot import detect

    model = load_detector(cfg)
    for data_set in data_sets:
        detect(cfg, model, data_set, folder)


if __name__ == "__main__":
    run_tool(main)
