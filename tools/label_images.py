#!/usr/bin/env python
"""Pseudo-label images: a folder, a glob, a list or one image to a COCO JSON.

Exit code: 0 all images processed (an image without masks counts as processed), 1 not finished,
2 finished but some images failed (named), 3 refused.
"""

from __future__ import annotations

import argparse

from promerge_d2.features import BACKBONES, FACETS, PRECISIONS
from promerge_d2.labeler import LABELERS, GridConfig
from promerge_d2.labeler.refinement import REFINERS
from promerge_d2.pseudo_labels import choose_workers, label_images, list_images
from promerge_d2.pseudo_labels.pipeline import IMAGES_A_WORKER
from promerge_d2.utils.cli import EXIT_FAILURES, EXIT_OK, ArgumentParser, run_tool
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import check_writable


def main() -> int:
    """Parse, label, say what happened."""
    parser = ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="\n".join(
            config.__doc__ for config in (GridConfig, *(c.config_class for c in LABELERS.values()))
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--input", required=True, help="folder, 'glob', .txt list (a path a line) or one image"
    )
    parser.add_argument("--output", required=True, help="COCO JSON to write")
    parser.add_argument(
        "--labeler", default="promerge", choices=tuple(LABELERS), help="how masks are found"
    )
    parser.add_argument(
        "--preset",
        default="release",
        help="of the labeler: "
        + "; ".join(f"{name}: {', '.join(c.config_class.presets)}" for name, c in LABELERS.items())
        + " (release)",
    )
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
        help="processes; 0 does all in this one; same masks (default: one a core, "
        f"but none with fewer than {IMAGES_A_WORKER} images each)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        help="images that go through a GPU at once; on a CPU they go one by one (8)",
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=PRECISIONS,
        help="of the network; bf16 is faster on recent GPUs, slower on most CPUs, and changes "
        "masks a little (fp32)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the network; for long runs"
    )
    args = parser.parse_args()

    settings = dict(_split(pair) for pair in args.set)
    settings |= {n: v for n in ("grid", "refine") if (v := getattr(args, n)) is not None}
    if args.workers is not None and args.workers < 0:
        raise UserError(f"--workers is {args.workers}; it takes 0 or more")
    if args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}; it takes 1 or more")
    images = list_images(args.input)
    workers = choose_workers(len(images.names)) if args.workers is None else args.workers
    check_writable(args.output)  # before the weights are fetched
    labeler = LABELERS[args.labeler].from_preset(
        args.preset,
        backbone=args.backbone,
        weights=args.weights,
        facet=args.facet,
        center={"on": True, "off": False, None: None}[args.center],
        device=args.device,
        precision=args.precision,
        compiled=args.compile,
        **settings,
    )
    overlays = args.overlays
    if overlays == "":
        overlays = args.output.removesuffix(".json") + ".overlays"
    summary = label_images(
        images, args.output, labeler, args.preset, overlays, workers, args.batch_size
    )

    print(f"{summary.masks} masks on {summary.images} images: {args.output}")
    for reason, count in sorted(summary.reasons.items()):
        print(f"  {count} images without a mask: {reason} ({labeler.reasons[reason]})")
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
