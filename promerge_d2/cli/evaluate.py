"""Score a raw pseudo-label or result file against a COCO-style ground truth as one class.

Example:
    promerge evaluate --predictions labels.json \
        --ground-truth instances_val2017.json --json scores.json
    ... --against other.json   # with 95 % intervals, and how sure the difference is

All figures are in per cent, and all categories of the ground truth are read as one class. Equal
scores are ranked by their order in the prediction file within an image, and by ascending image id
across images. Intervals come from 1000 draws of the images with replacement, the same for both
files; each difference is that of the predictions minus that of the other file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.coco.ground_truth import read_ground_truth
from promerge_d2.coco.predictions import read_predictions
from promerge_d2.evaluation import (
    MATCH_MODES,
    PROTOCOL,
    align_predictions,
    bootstrap,
    check_iou_types,
    flat_metrics,
    format_bootstrap,
    format_table,
    match_instances,
    metrics_of,
)
from promerge_d2.evaluation.metrics import IOU_TYPES
from promerge_d2.utils.errors import EXIT_OK
from promerge_d2.utils.files import check_writable, write_json


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(
        prog="promerge evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--predictions",
        required=True,
        type=Path,
        metavar="P",
        help="a COCO file (missing scores mean 1.0, crowds are dropped) or a bare result list",
    )
    parser.add_argument(
        "--ground-truth", required=True, type=Path, metavar="G", help="a COCO-style file"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures here: segm.AP, bbox.AR100, ..."
    )
    parser.add_argument(
        "--match",
        choices=MATCH_MODES,
        default="auto",
        help="how images are found in the ground truth; auto (default): by file name if the "
        "predictions have an 'images' section, else by id",
    )
    parser.add_argument(
        "--only-listed",
        action="store_true",
        help="evaluate only the ground-truth images that the predictions list (in a bare result "
        "list: that have a prediction); by default the others count as images without predictions",
    )
    parser.add_argument(
        "--iou-types",
        nargs="+",
        choices=IOU_TYPES,
        metavar="TYPE",
        help="bbox, segm or both; by default both, or bbox where one side has no masks",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="P",
        help="other predictions on the same images: print the intervals of both and of their "
        "paired difference",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print the table, and write the JSON file if asked."""
    args = make_parser().parse_args(argv)
    if args.json:
        check_writable(args.json)
    ground_truth = read_ground_truth(args.ground_truth)
    predictions = align_predictions(read_predictions(args.predictions), ground_truth, args.match)
    protocol = PROTOCOL
    if args.only_listed:
        ground_truth = ground_truth.restricted_to(predictions.listed)
        protocol += "; only images that the predictions list"
    iou_types = check_iou_types(ground_truth, predictions, args.iou_types)
    matches = {t: match_instances(ground_truth, predictions, t) for t in iou_types}
    results = {t: metrics_of(found) for t, found in matches.items()}
    counts = {
        "images": len(ground_truth.images),
        "ground_truth_objects": int((~ground_truth.objects.crowd).sum()),
        "predictions": len(predictions.instances),
    }
    print(format_table(results))
    print(f"\nProtocol: {protocol}; -1: no object of that size.")
    print(
        f"{counts['images']} images, {counts['ground_truth_objects']} objects, "
        f"{counts['predictions']} predictions."
    )
    report = {**flat_metrics(results), **counts, "protocol": protocol}
    if args.against:
        other = align_predictions(read_predictions(args.against), ground_truth, args.match)
        check_iou_types(ground_truth, other, iou_types)
        estimates = {
            t: bootstrap(found, match_instances(ground_truth, other, t))
            for t, found in matches.items()
        }
        print(f"\nAgainst {args.against}:\n{format_bootstrap(estimates)}")
        sides = ("this", "other", "difference")
        report["against"] = str(args.against)
        report["intervals"] = {
            name: {
                side: [estimate.value, estimate.low, estimate.high]
                for side, estimate in zip(sides, row, strict=True)
            }
            for name, row in flat_metrics(estimates).items()
        }
    if args.json:
        write_json(args.json, report, indent=2)
    return EXIT_OK
