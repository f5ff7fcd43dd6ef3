#!/usr/bin/env python
"""Pseudo-label images: a folder, a glob, a list or one image to a COCO JSON.

Exit code: 0 all images processed (an image without masks counts as processed), 1 not finished,
2 finished but some images failed (named), 3 refused.
"""

from __future__ import annotations

import argparse
import os

import torch

from promerge_d2.features import BACKBONES, FACETS
from promerge_d2.labeler import PRESETS, REASONS, LabelerConfig, ProMergeLabeler
from promerge_d2.labeler.refinement import REFINERS
from promerge_d2.pseudo_labels import label_images, list_images
from promerge_d2.utils.cli import EXIT_FAILURES, EXIT_OK, ArgumentParser, run_tool
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import check_writable


def main() -> int:
    """Parse, label, say what happened."""
    parser = ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=LabelerConfig.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--input", required=True, help="folder, 'glob', .txt list (a path a line) or one image"
    )
    parser.add_argument("--output", required=True, help="COCO JSON to write")
    parser.add_argument("--preset", default="release", help=f"{' or '.join(PRESETS)} (release)")
    parser.add_argument("--backbone", default="dino_vitb8", help=", ".join(BACKBONES))
    parser.add_argument("--weights", help="local weights file instead of the official one")
    parser.add_argument("--facet", default="key", choices=FACETS)
    parser.add_argument(
        "--center",
        choices=("on", "off"),
        help="subtract the image's mean feature (default: as the backbone needs)",
    )
    parser.add_argument("--grid", help="patch grid, one side or HxW (default: 60)")
    parser.add_argument("--refine", choices=tuple(REFINERS), help="default: as the preset says")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another labeler setting, see below; can be repeated",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (cpu)")
    parser.add_argument(
        "--overlays",
        nargs="?",
        const="",
        metavar="DIR",
        help="write a picture an image, into OUTPUT's name + .overlays unless DIR is given",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes that refine masks while this one computes features; same masks (0)",
    )
    args = parser.parse_args()

    settings = dict(_split(pair) for pair in args.set)
    settings |= {n: v for n in ("grid", "refine") if (v := getattr(args, n)) is not None}
    if args.workers < 0:
        raise UserError(f"--workers is {args.workers}; it takes 0 or more")
    if args.workers:  # the cores that the workers leave
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - args.workers))
    images = list_images(args.input)
    check_writable(args.output)  # before the weights are fetched
    labeler = ProMergeLabeler.from_preset(
        args.preset,
        backbone=args.backbone,
        weights=args.weights,
        facet=args.facet,
        center={"on": True, "off": False, None: None}[args.center],
        device=args.device,
        **settings,
    )
    overlays = args.overlays
    if overlays == "":
        overlays = args.output.removesuffix(".json") + ".overlays"
    summary = label_images(images, args.output, labeler, args.preset, overlays, args.workers)

    print(f"{summary.masks} masks on {summary.images} images: {args.output}")
    for reason, count in sorted(summary.reasons.items()):
        print(f"  {count} images without a mask: {reason} ({REASONS[reason]})")
    if summary.failures:
        print(f"  {len(summary.failures)} images failed:")
        for failure in summary.failures:
            print(f"    {failure['file_name']}: {failure['error']}")
        return EXIT_FAILURES
    return EXIT_OK


def _split(pair: str) -> tuple[str, str]:
    name, sign, value = pair.partition("=")
    if not sign:
        raise UserError(f"--set takes NAME=VALUE, not {pair!r}")
    return name, value


if __name__ == "__main__":
    run_tool(main)
