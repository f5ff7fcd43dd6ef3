"""The command ``tools/ablate.py``: its options, and what it writes."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from benchmarks.ablations.experiments import EXPERIMENTS, SCENES, Setup, offline_backbones
from benchmarks.ablations.page import write_markdown, write_page
from benchmarks.ablations.sweep import LabelledImages
from promerge_d2.cli.labeler_arguments import add_labeler_arguments, labeler_from
from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.features import get_backbone
from promerge_d2.labeler import Labeler, labeler_of_preset
from promerge_d2.utils.errors import EXIT_OK, UserError
from promerge_d2.utils.files import check_writable

DESCRIPTION = """
Find out which settings suit your images: sweeps over a labelled folder, and painted cases.

Tables (.csv), plots (.png) and index.html go to --output. Features are kept there, and rows that
are done are not computed again, so that a command that was stopped goes on where it was. All
columns but `seconds` are the same in every run, with any number of workers.
"""


def main() -> int:
    """Parse, compute what is missing, write the page."""
    parser = ArgumentParser(description=DESCRIPTION)
    add_labeler_arguments(parser)
    parser.add_argument(
        "experiment",
        choices=(*EXPERIMENTS, "all"),
        help="; ".join(f"{name}: {e.title}" for name, e in EXPERIMENTS.items())
        + "; all: those that go with the labeler of --preset",
    )
    parser.add_argument("--images", type=Path, help="folder of labelled images")
    parser.add_argument("--annotations", type=Path, help="their COCO JSON, read as one class")
    parser.add_argument("--output", type=Path, required=True, help="folder for all that is written")
    parser.add_argument("--cache", type=Path, help="folder for features (OUTPUT/cache)")
    parser.add_argument("--count", type=int, help="images, spread over the annotated ones (all)")
    parser.add_argument(
        "--scenes", type=int, default=SCENES, help=f"painted scenes a case ({SCENES})"
    )
    parser.add_argument(
        "--backbones",
        nargs="+",
        metavar="NAME[:WEIGHTS]",
        help="to compare (default: --backbone, and all whose weights are on this machine)",
    )
    parser.add_argument("--workers", type=int, help="processes; 0 does all in this one")
    parser.add_argument(
        "--markdown",
        type=Path,
        help="a page of yours: plots replace what is between its lines <!-- EXPERIMENT: begin --> "
        "and <!-- EXPERIMENT: end -->; made if it is not there",
    )
    args = parser.parse_args()
    names = chosen(args.experiment, args.preset)
    for file in filter(None, (args.output / "index.html", args.markdown)):
        check_writable(file)
    for option in ("count", "scenes"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise UserError(f"--{option} is {value}; it takes 1 or more")
    if args.workers is not None and args.workers < 0:
        raise UserError(f"--workers is {args.workers}; it takes 0 or more")
    images = None
    if not all(EXPERIMENTS[name].painted for name in names):
        if args.images is None or args.annotations is None:
            raise UserError(
                f"{args.experiment} needs labelled images: give --images and --annotations"
            )
        images = LabelledImages.read(args.images, args.annotations, args.count)

    def make(**options: object) -> Labeler:
        return labeler_from(argparse.Namespace(**{**vars(args), **options}))

    setup = Setup(
        make,
        args.preset,
        args.output,
        args.cache or args.output / "cache",
        images,
        compared(args),
        args.scenes,
        args.workers,
    )
    logging.getLogger("promerge_d2.features").setLevel(logging.WARNING)  # at every labeler
    for name in names:
        EXPERIMENTS[name].run(name, setup)
        present = write_page(args.output, name)
    if args.markdown:
        write_markdown(args.output, present, args.markdown)
    print(args.output / "index.html")
    return EXIT_OK


def chosen(experiment: str, preset: str) -> list[str]:
    """Name the experiments to run: those that go with the labeler of the preset.

    Raises:
        UserError: the one that is asked for does not.
    """
    labeler = labeler_of_preset(preset).name
    names = [name for name, e in EXPERIMENTS.items() if e.labeler in (None, labeler)]
    if experiment == "all":
        return names
    if experiment not in names:
        raise UserError(
            f"{experiment} varies settings of the labeler {EXPERIMENTS[experiment].labeler}, and "
            f"--preset {preset} is of {labeler}; with it go: {', '.join(names)}"
        )
    return [experiment]


def compared(args: argparse.Namespace) -> list[tuple[str, str | None]]:
    """List the backbones to compare: name, and weights file or None."""
    if args.backbones is None:
        others = [name for name in offline_backbones() if name != args.backbone]
        return [(args.backbone, args.weights), *((name, None) for name in others)]
    pairs = [given.partition(":")[::2] for given in args.backbones]
    return [(get_backbone(name).name, weights or None) for name, weights in pairs]
