"""Draw what each stage of a labeler makes of an image, and the thresholds that decided it.

Exit code: 0 all sheets drawn, 1 not finished, 2 finished but some images failed (named), 3 refused.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

from promerge_d2.cli.labeler_arguments import add_labeler_arguments, labeler_from
from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.utils.errors import EXIT_FAILURES, EXIT_OK, UserError
from promerge_d2.utils.files import check_writable
from promerge_d2.utils.image import IMAGE_SUFFIXES, ImageError
from promerge_d2.utils.threads import one_thread
from promerge_d2.visualization.figures import save_figure
from promerge_d2.visualization.stages import DPI, counted, draw_sheet, view_stages


def make_parser(preset: str = "best") -> ArgumentParser:
    """Describe the command line.

    Args:
        preset: the one that is taken when none is named.
    """
    parser = ArgumentParser(prog="promerge visualize", description=__doc__.splitlines()[0])
    parser.add_argument("--stages", required=True, nargs="+", metavar="IMAGE", help="what to draw")
    parser.add_argument(
        "--output", required=True, help="PNG of one image, or a folder for an IMAGE.png of each"
    )
    add_labeler_arguments(parser, preset)
    return parser


def main(argv: Sequence[str] | None = None, preset: str = "best") -> int:
    """Parse, draw, say what happened."""
    args = make_parser(preset).parse_args(argv)

    sheets = name_sheets(args.stages, args.output)
    for sheet in sheets:
        check_writable(sheet)  # before the weights are fetched
    labeler = labeler_from(args)
    failures = []
    for image, sheet in zip(args.stages, sheets, strict=True):
        try:
            with one_thread():  # as in labelling, so that the masks are the same
                view = view_stages(labeler, args.preset, image, Path(image).name)
        except ImageError as error:
            failures.append(error)
            continue
        save_figure(draw_sheet(view), sheet, DPI)
        print(f"{counted(view.result.records, 'mask')}: {sheet}")
        if view.result.reason:
            print(f"  {view.result.reason} ({labeler.reasons[view.result.reason]})")
    if failures:
        print(f"{counted(failures, 'image')} failed:", *failures, sep="\n  ")
        return EXIT_FAILURES
    return EXIT_OK


def name_sheets(images: Sequence[str], output: str) -> list[Path]:
    """Name the PNG of each image.

    Raises:
        UserError: one file is named for several images, it is no PNG, or two images have one name.
    """
    path = Path(output)
    if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
        if path.suffix.lower() != ".png":
            raise UserError(f"cannot write {path}: sheets are PNG files: name a folder or a .png")
        if len(images) > 1:
            raise UserError(
                f"{path} is one picture, but there are {len(images)} images; name a folder"
            )
        return [path]
    sheets = [path / f"{Path(image).name}.png" for image in images]
    for sheet, count in collections.Counter(sheets).items():
        if count > 1:
            raise UserError(f"{count} images would be drawn into {sheet}; draw them one by one")
    return sheets
