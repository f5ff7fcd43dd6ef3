"""Fill the token cache of a frozen-ViT detector ahead of training; again, it does nothing.

Example:
    promerge cache-features --config promerge_cascade_vit_small.yaml \
        DATASETS.PROMERGE "[['mine', 'labels.json', 'photos']]"

takes the arguments of promerge train: whatever changes the images there must be the same here.
Exit code: 0 all tokens are there, 2 some images cannot be read (named), 3 refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from promerge_d2.cli.parser import ArgumentParser, find_config
from promerge_d2.data import check_datasets, register_from_config
from promerge_d2.engine.fill_cache import fill_cache
from promerge_d2.engine.setup import check_device, read_config
from promerge_d2.utils.errors import EXIT_FAILURES, EXIT_OK


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(
        prog="promerge cache-features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file",
        "--config",
        required=True,
        type=find_config,
        metavar="FILE",
        help="a file, or the name of a shipped config such as promerge_cascade.yaml",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes of one thread each; default: one a core on a CPU, none with a GPU",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, fill, say what happened."""
    args = make_parser().parse_args(argv)
    cfg = read_config(args.config_file, args.opts)
    register_from_config(cfg)
    check_device(cfg)
    check_datasets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    filled = fill_cache(cfg, args.workers)
    views = filled.computed + filled.there
    print(
        f"{views} views of {filled.images} images: {filled.computed} computed, {filled.there} were "
        f"there; {filled.bytes / 1e9:.2f} GB ({filled.bytes / max(views, 1) / 1e6:.2f} MB each) in "
        f"{cfg.MODEL.FROZEN_VIT.CACHE_DIR}; {filled.seconds:.0f} s"
    )
    for problem in filled.failures.values():
        print(f"  {problem}")
    return EXIT_FAILURES if filled.failures else EXIT_OK
