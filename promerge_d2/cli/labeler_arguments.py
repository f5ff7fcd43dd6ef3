"""The command-line options that make a labeler, for every tool that takes them."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import textwrap

from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.features import FACETS, PRECISIONS
from promerge_d2.labeler import LABELERS, PRESETS, GridConfig, Labeler, labeler_of_preset
from promerge_d2.labeler.refine import REFINERS
from promerge_d2.utils.errors import UserError


def add_labeler_arguments(parser: ArgumentParser, preset: str = "release") -> None:
    """Add the options that ``labeler_from`` reads, and one that explains every setting.

    Args:
        parser: takes them, in the groups "masks", "speed" and "advanced".
        preset: the one that is taken when none is named.
    """
    masks, speed, advanced = (parser.group(title) for title in ("masks", "speed", "advanced"))
    masks.add_argument(
        "--preset",
        default=preset,
        choices=tuple(PRESETS),
        help=f"a labeler and its settings ({preset})",
    )
    masks.add_argument(
        "--backbone",
        default="dino_vitb8",
        metavar="NAME",
        help="the network (dino_vitb8); promerge env lists all",
    )
    masks.add_argument("--weights", metavar="FILE", help="your copy instead of the official one")
    masks.add_argument("--grid", help="patch grid, one side or HxW (60)")
    masks.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another setting of the labeler, such as masks_device=cuda; can be repeated",
    )
    masks.add_argument(
        "--help-settings", action=_HelpSettings, nargs=0, help="explain every setting and preset"
    )
    speed.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (cpu)")
    advanced.add_argument(
        "--refine", choices=tuple(REFINERS), help="of the edges (default: as the preset says)"
    )
    advanced.add_argument(
        "--facet", choices=FACETS, help="default: the key, or the last stage of a ResNet"
    )
    advanced.add_argument(
        "--center",
        choices=("on", "off"),
        help="subtract the image's mean feature (default: as the backbone needs)",
    )
    advanced.add_argument(
        "--precision",
        default="fp32",
        choices=PRECISIONS,
        help="of the network; bf16 is faster on recent GPUs, slower on most CPUs, and changes "
        "masks a little (fp32)",
    )


class _HelpSettings(argparse.Action):
    """Print ``settings_help`` and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(settings_help())
        parser.exit()


def settings_help() -> str:
    """Return the settings of the labelers, by labeler, with the values of each preset."""
    parts = [f"settings of every labeler:\n{_described(GridConfig)}"]
    for name, labeler in LABELERS.items():
        config_class = labeler.config_class
        parts.append(f"settings of {name} ({labeler.title}):\n{_described(config_class)}")
        for preset in config_class.presets:
            values = dataclasses.asdict(config_class.from_preset(preset))
            values["grid"] = "x".join(map(str, values["grid"]))
            pairs = " ".join(f"{key}={value}" for key, value in values.items())
            lines = textwrap.wrap(pairs, 92, initial_indent="    ", subsequent_indent="    ")
            parts.append("\n".join([f"  --preset {preset} is", *lines]))
    return "\n\n".join(parts)


def _described(config_class: type[GridConfig]) -> str:
    """Return the lines of a config's docstring that describe its settings."""
    return (inspect.getdoc(config_class) or "").partition("Attributes:\n")[2].rstrip()


def labeler_from(args: argparse.Namespace, compiled: bool = False) -> Labeler:
    """Build the labeler that the options ask for.

    Args:
        args: of a parser with ``add_labeler_arguments``.
        compiled: see ``FeatureExtractor``.

    Returns:
        The labeler, its weights loaded.

    Raises:
        UserError: as ``Labeler.from_preset``, or a ``--set`` without ``=``.
    """
    settings = dict(_split(pair) for pair in args.set)
    settings |= {n: v for n in ("grid", "refine") if (v := getattr(args, n)) is not None}
    return labeler_of_preset(args.preset).from_preset(
        args.preset,
        backbone=args.backbone,
        weights=args.weights,
        facet=args.facet,
        center={"on": True, "off": False, None: None}[args.center],
        device=args.device,
        precision=args.precision,
        compiled=compiled,
        **settings,
    )


def _split(pair: str) -> tuple[str, str]:
    name, sign, value = pair.partition("=")
    if not sign:
        raise UserError(f"--set takes NAME=VALUE, not {pair!r}")
    return name, value
