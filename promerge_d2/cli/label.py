"""Label images: a folder, a glob, a list, tars or one image to a COCO JSON with masks.

Every finished image is kept in OUTPUT.parts: after a stop of any kind, the same command goes on.
Several processes share the work with --num-shards and --shard-id; see docs/scaling.md.

Exit code: 0 all images processed (an image without masks counts as processed), 1 not finished,
2 finished but some images failed (named), 3 refused.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from promerge_d2.cli.engine_arguments import (
    add_engine_arguments,
    check_engine_arguments,
    engine_from,
    shard_of,
)
from promerge_d2.cli.labeler_arguments import add_labeler_arguments, labeler_from
from promerge_d2.cli.parser import ArgumentParser, find_config
from promerge_d2.cli.validate import draw_gallery
from promerge_d2.coco.check import validate_labels
from promerge_d2.features import FeatureExtractor
from promerge_d2.pseudo_labels import label_images, list_images, print_summary
from promerge_d2.pseudo_labels.finding import OUTPUT_SUFFIX
from promerge_d2.utils.errors import EXIT_FAILURES, EXIT_OK, UserError
from promerge_d2.utils.files import check_writable

IN_GALLERY = 200  # photographs at most


def make_parser(preset: str = "best") -> ArgumentParser:
    """Describe the command line.

    Args:
        preset: the one that is taken when none is named.
    """
    parser = ArgumentParser(
        prog="promerge label",
        usage="promerge label [options] IMAGES",
        description=__doc__.splitlines()[0],
    )
    parser.add_argument(
        "images",
        nargs="?",
        metavar="IMAGES",
        help="folder, 'glob', .txt list (a path a line), COCO .json, .tar (a WebDataset shard) or "
        "one image; tars count as folders",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="COCO JSON to write (default: labels.json in the folder IMAGES.promerge)",
    )
    parser.add_argument(
        "--gallery",
        metavar="DIR",
        help=f"write a page of up to {IN_GALLERY} labelled images (default: with no --output, the "
        "folder gallery beside labels.json)",
    )
    add_labeler_arguments(parser, preset)
    add_engine_arguments(parser)
    advanced = parser.group("advanced")
    advanced.add_argument("--input", metavar="IMAGES", help="another way to name them")
    advanced.add_argument(
        "--image-root",
        metavar="DIR",
        help="where the names in a .txt or .json start from (default: that file's folder)",
    )
    advanced.add_argument(
        "--overlays",
        nargs="?",
        const="",
        metavar="DIR",
        help="write a picture of each image labelled now, into OUTPUT's name + .overlays or DIR",
    )
    advanced.add_argument(
        "--tokens-for",
        type=find_config,
        metavar="CONFIG",
        help="of a detector on the same frozen ViT: images that are squares of its size go through "
        "the network once, for the labels and for its token cache",
    )
    advanced.add_argument(
        "--compile", action="store_true", help="torch.compile the network; for long runs"
    )
    advanced.add_argument(
        "--retry-failed", action="store_true", help="label those again that failed before"
    )
    return parser


def main(argv: Sequence[str] | None = None, preset: str = "best") -> int:
    """Label, say what happened and what can come next."""
    parser = make_parser(preset)
    args = parser.parse_args(argv)
    if (args.images is None) == (args.input is None):
        parser.error("name the images once: promerge label IMAGES")
    source = args.images or args.input
    check_engine_arguments(args)
    shard, shards = shard_of(args)
    output, gallery = args.output, args.gallery
    if output is None:
        folder = folder_beside(source)
        output, gallery = str(folder / "labels.json"), gallery or str(folder / "gallery")
    images = list_images(source, args.image_root)
    check_writable(output)  # before the weights are fetched
    if gallery:
        check_writable(Path(gallery) / "index.html")
    engine = engine_from(args, len(images.files) // shards, args.device)
    if args.engine == "ray":
        args.device = "cpu"  # here; the GPUs are elsewhere
    elif args.device == "cuda":
        args.device += f":{os.environ.get('LOCAL_RANK', 0)}"  # torchrun's, of this machine
    labeler = labeler_from(args, args.compile)
    if args.tokens_for:
        labeler.extractor = shared_extractor(labeler.extractor, args.tokens_for)
    overlays = args.overlays
    if overlays == "":
        overlays = output.removesuffix(".json") + ".overlays"
    summary = label_images(
        images,
        output,
        labeler,
        args.preset,
        overlays,
        engine,
        shard,
        shards,
        args.retry_failed,
    )

    where = output if shards == 1 else f"shard {shard} of {shards} of {output}"
    print(f"{summary.masks} masks on {summary.images} images: {where}")
    print_summary(summary, labeler.reasons)
    if not summary.failures and args.output is None:
        print("  no image failed")
    if shards > 1:
        print(f"when all shards are done: promerge merge {shlex.quote(output)}")
    elif gallery:
        page = draw_gallery(output, validate_labels(output), images.root, gallery, IN_GALLERY)
        print(f"look at them:   {page.resolve().as_uri()}")
    if shards == 1 and args.output is None:
        print_next(output, images.root)
    return EXIT_FAILURES if summary.failures else EXIT_OK


def shared_extractor(extractor: FeatureExtractor, config: str) -> FeatureExtractor:
    """Make an extractor that fills a detector's token cache too, see ``SharedExtractor``."""
    from promerge_d2.engine.setup import read_config  # these need detectron2
    from promerge_d2.modeling.shared_pass import SharedExtractor

    return SharedExtractor.from_config(extractor, read_config(config, []))


def folder_beside(source: str) -> Path:
    """Return the folder ``IMAGES.promerge`` beside an input.

    Raises:
        UserError: the input is no file or folder.
    """
    if not os.path.exists(source):
        if not any(sign in source for sign in "*?["):
            raise UserError(f"the input {source} does not exist")
        raise UserError(f"{source} has no one place: name a file with --output labels.json")
    path = Path(os.path.abspath(source))
    return Path(os.path.relpath(path.with_name(path.name + OUTPUT_SUFFIX)))


def print_next(output: str, root: Path) -> None:
    """Print commands that go on from new labels."""
    print(f"put them right: promerge studio {shlex.quote(output)}")
    entry = f"[['mine', {output!r}, {str(root)!r}]]"
    quoted = shlex.quote(entry) if set(entry) & set('"$`\\!') else f'"{entry}"'  # as one reads it
    config = "promerge_cascade_vit_small.yaml"  # its DATASETS.TRAIN is mine
    if torch.cuda.is_available():
        config = "promerge_cascade.yaml DATASETS.TRAIN \"('mine',)\""
    print(f"train on them:  promerge train --config {config} DATASETS.PROMERGE {quoted}")
