"""Draw what a trained detector finds in photographs.

Exit code: 0 all drawn, 2 drawn but some images could not be read (named), 3 refused.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Sequence
from pathlib import Path

from promerge_d2.cli.parser import ArgumentParser, find_config
from promerge_d2.coco.write import coco_writer
from promerge_d2.engine.detector import DetectorMaskGenerator
from promerge_d2.engine.setup import check_device, check_weights, read_config
from promerge_d2.pseudo_labels import list_images
from promerge_d2.pseudo_labels.local_engine import Job
from promerge_d2.utils.errors import EXIT_FAILURES, EXIT_OK, UserError
from promerge_d2.utils.files import check_writable
from promerge_d2.utils.image import IMAGE_SUFFIXES, ImageError, load_image
from promerge_d2.visualization.overlay import draw_records, save_png


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(prog="promerge demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--config-file", "--config", required=True, type=find_config, metavar="YAML"
    )
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        help="images, folders, 'globs', .txt lists or tars",
    )
    parser.add_argument(
        "--output", required=True, help="PNG of one image, or a folder for an IMAGE.png of each"
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="S",
        help="draw detections of at least this score. A detector gives as many as it may (100, of "
        "any score), most of them doubtful; 0.5 leaves those that it holds for an object rather "
        "than not. After a short training scores are low: the best one of each image is printed; "
        "0 draws all (0.5)",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write what is drawn as COCO JSON too, with scores"
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys, last of all: MODEL.WEIGHTS output/model_final.pth MODEL.DEVICE cpu",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, detect, draw, say what was found."""
    args = make_parser().parse_args(argv)
    threshold = args.confidence_threshold
    if not 0 <= threshold <= 1:
        raise UserError(f"--confidence-threshold is {threshold}; it lies in 0 to 1")
    images = name_pictures(args.input, args.output)
    for picture in (images[0][2], *([args.json] if args.json else [])):
        check_writable(picture)
    cfg = read_config(args.config_file, args.opts)
    if not cfg.MODEL.WEIGHTS:
        raise UserError(
            "a detector without weights draws random boxes; add MODEL.WEIGHTS "
            "output/model_final.pth at the end"
        )
    check_device(cfg)
    check_weights(cfg, eval_only=False)
    detector = DetectorMaskGenerator(cfg, threshold)
    entries, annotations, failures = [], [], []
    for image_id, (name, source, picture) in enumerate(images, start=1):
        try:
            found = detector.detect(source.open())
            pixels = load_image(source.open())
        except ImageError as error:
            failures.append(error)
            continue
        result = detector.processor.postprocess(found)
        save_png(picture, draw_records(pixels, result.records))
        print(f"{name}: {told(len(result.records), threshold, found.instances.scores.tolist())}")
        size = {"width": result.width, "height": result.height}
        entries.append({"id": image_id, "file_name": name, **size})
        annotations += [{"image_id": image_id, **record} for record in result.records]
    print(args.output)
    if args.json:
        info = detector.describe(Path(args.config_file).name)
        with coco_writer(args.json, info) as out:
            for entry in entries:
                out.add_image(entry)
            for annotation in annotations:
                out.add_annotation(annotation)
    if failures:
        print(f"{len(failures)} images failed:", *failures, sep="\n  ")
        return EXIT_FAILURES
    return EXIT_OK


def name_pictures(inputs: list[str], output: str) -> list[tuple[str, Job, Path]]:
    """Each image's name, what to open, and its PNG.

    Raises:
        UserError: nothing is there, one file is named for several images, it is no PNG, or two
            images have one name.
    """
    lists = [list_images(source) for source in inputs]
    images = [(file.name, Job(file.under(found.root))) for found in lists for file in found.files]
    path = Path(output)
    if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
        if path.suffix.lower() != ".png":
            raise UserError(f"cannot write {path}: pictures are PNG files; name a folder or a .png")
        if len(images) > 1:
            raise UserError(
                f"{path} is one picture, but there are {len(images)} images; name a folder"
            )
        return [(*images[0], path)]
    for name, count in collections.Counter(name for name, _ in images).items():
        if count > 1:
            raise UserError(
                f"{count} images would be drawn into {path / name}.png; draw them in turn"
            )
    # the whole name: a.jpg and a.png differ, and no photograph is written over
    return [(name, source, path / f"{name}.png") for name, source in images]


def told(count: int, threshold: float, scores: list[float]) -> str:
    """What was found, in words."""
    best = f"the best score is {max(scores):.2f}" if scores else "nothing of any score"
    return f"{count} {'object' if count == 1 else 'objects'} of score {threshold:g} or more; {best}"
