"""Label a folder of images, train a detector on them, and let it label them better: round by round.

Everything is kept in OUTPUT: after a stop of any kind, the same command goes on. See
docs/self_training.md.

Exit code: 0 all rounds done, 1 not finished, 2 finished but some images could not be read (named in
the log and in the stores), 3 refused.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from promerge_d2.cli.engine_arguments import (
    add_engine_arguments,
    check_engine_arguments,
    engine_from,
    shard_of,
)
from promerge_d2.cli.labeler_arguments import add_labeler_arguments, labeler_from
from promerge_d2.cli.parser import ArgumentParser, find_config
from promerge_d2.engine.self_training import (
    MIN_SCORES,
    Share,
    format_rounds,
    plan_rounds,
    self_train,
)
from promerge_d2.pseudo_labels import label_images, list_images, print_summary
from promerge_d2.pseudo_labels.combine import Rules, check_labels
from promerge_d2.pseudo_labels.inputs import ImageList
from promerge_d2.pseudo_labels.store import guard_write
from promerge_d2.utils.errors import EXIT_FAILURES, EXIT_OK, UserError
from promerge_d2.utils.files import atomic_path, sha256_of

LABELER_OPTIONS = (
    *("preset", "backbone", "weights", "facet", "center", "grid", "refine", "set"),
    "precision",
)


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(prog="promerge self-train", description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="folder of images, at any depth")
    parser.add_argument(
        "--config-file",
        "--config",
        required=True,
        type=find_config,
        metavar="FILE",
        help="a file, or the name of a shipped config such as promerge_cascade.yaml",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of training, the first on the labeler's masks (3)"
    )
    parser.add_argument(
        "--labels", help="COCO JSON of the first round, names from --images on; else they are made"
    )
    parser.add_argument(
        "--test",
        nargs="*",
        metavar="NAME",
        help="data sets to evaluate every round on (default: the config's DATASETS.TEST); no name: "
        "none",
    )
    rules = parser.add_argument_group("which predictions become labels")
    rules.add_argument(
        "--min-score",
        type=float,
        nargs="+",
        metavar="S",
        help="lowest score of a kept prediction, in the second round, the third, ...; the last one "
        f"holds for all that follow (default: {' '.join(map(str, MIN_SCORES))}; 0 with the next "
        "two)",
    )
    rules.add_argument(
        "--keep-share",
        type=float,
        metavar="SHARE",
        help="keep this share of all predictions, those with the highest scores: for detectors "
        "whose scores are not calibrated, as after minutes of training",
    )
    rules.add_argument(
        "--keep-per-image", type=int, metavar="N", help="keep at most N predictions an image"
    )
    rules.add_argument(
        "--max-iou",
        type=float,
        default=0.5,
        help="an old mask goes where its IoU with a kept prediction reaches this (0.5)",
    )
    rules.add_argument(
        "--agree",
        action="store_true",
        help="keep all old masks and all predictions: both on one scale of scores, and what both "
        "found ranks before what one of them found (use it with INPUT.PSEUDO_LABELS.MAX_PER_IMAGE)",
    )
    later = parser.add_argument_group("configs of the later rounds")
    later.add_argument(
        "--round-config",
        nargs="+",
        type=find_config,
        default=[],
        metavar="YAML",
        help="of the second round, the third, ...; the last one holds for all that follow (default:"
        " NAME_r1.yaml, NAME_r2.yaml beside --config's NAME.yaml; else that one with DropLoss off "
        "and half the learning rate, constant, for half the iterations)",
    )
    later.add_argument(
        "--round-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a config key of the later rounds; can be repeated",
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, help="processes that predict and train, a GPU each (1)"
    )
    add_labeler_arguments(parser)
    add_engine_arguments(parser)
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys of all rounds; "
        "put -- before them where they follow an option that takes several values",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check everything, go through the rounds, say what came of them."""
    args = make_parser().parse_args(argv)
    args.opts = [opt for opt in args.opts if opt != "--"]
    check_engine_arguments(args)
    if args.rounds < 1:
        raise UserError(f"--rounds is {args.rounds}; it takes 1 or more")
    if args.num_gpus < 1:
        raise UserError(f"--num-gpus is {args.num_gpus}; one process, on a CPU too, is 1")
    if not Path(args.images).is_dir():
        raise UserError(f"--images {args.images} is no folder")
    if args.labels and not Path(args.labels).is_file():
        raise UserError(f"--labels {args.labels} does not exist")
    shard, shards = shard_of(args)
    rounds = plan_rounds(
        args.config_file,
        args.opts,
        rules_of(args),
        args.round_config,
        round_opts(args.round_set),
        args.test,
    )
    images = list_images(args.images)
    if args.labels:
        first_labels = partial(copy_labels, args.labels, images)
        settings = {"sha256": sha256_of(args.labels)}
    else:
        first_labels = partial(label, args, images)
        settings = {name: getattr(args, name) for name in LABELER_OPTIONS}
    share = Share(partial(engine_from, args), shard, shards, args.num_gpus)
    figures = self_train(images, args.output, rounds, first_labels, settings, share)
    if figures:
        print(f"\n{format_rounds(figures)}\n\n{args.output / 'rounds.json'}")
    return EXIT_FAILURES if any(figure["failed"] for figure in figures) else EXIT_OK


def rules_of(args: argparse.Namespace) -> list[Rules]:
    """The rules of each round after the first."""
    ranked = args.agree or args.keep_share is not None or args.keep_per_image is not None
    scores = args.min_score or ((0.0,) if ranked else MIN_SCORES)
    return [
        Rules(
            scores[min(number, len(scores) - 1)],
            args.max_iou,
            args.keep_share,
            args.keep_per_image,
            args.agree,
        )
        for number in range(args.rounds - 1)
    ]


def round_opts(pairs: list[str]) -> list[str]:
    """``KEY=VALUE`` pairs as the list that a config takes."""
    opts = []
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise UserError(f"--round-set takes KEY=VALUE, not {pair!r}")
        opts += [key, value]
    return opts


def copy_labels(source: str, images: ImageList, target: Path, share: Share) -> None:
    """Bring labels that are there to their place, if they are labels of the images."""
    if share.shards > 1:
        raise UserError("with --labels the first step cannot be shared; begin without shards")
    check_labels(source, images)
    with guard_write(target), atomic_path(target) as part:
        shutil.copyfile(source, part)


def label(args: argparse.Namespace, images: ImageList, target: Path, share: Share) -> None:
    """Label the images, or this process's share of them."""
    engine = share.engine(len(images.files) // share.shards, args.device)
    if args.engine == "ray":
        args.device = "cpu"  # here; the GPUs are elsewhere
    labeler = labeler_from(args)
    summary = label_images(
        images,
        target,
        labeler,
        args.preset,
        engine=engine,
        shard=share.shard,
        shards=share.shards,
    )
    print(f"{summary.masks} masks on {summary.images} images: {target}")
    print_summary(summary, labeler.reasons)
