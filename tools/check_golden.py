#!/usr/bin/env python
"""Compare the labeler, stage by stage, with stored outputs of the released algorithm.

Each ``.npz`` file of the folder holds ``features`` (C, H, W), ``stride``, ``bipartition_tau``,
``foreground_include_tau`` and the masks ``foreground``, ``background``, ``pruned``, ``merged``
(bool, on the patch grid; absent where the released code stops before). Masks are compared as sets.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.labeler import ProMergeConfig, grid_masks
from promerge_d2.utils.errors import EXIT_NOT_FINISHED, EXIT_OK, UserError

STAGES = ("foreground", "background", "pruned", "merged")


def main() -> int:
    """Check every file, stop at the first difference, and return the exit code."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of .npz files")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args()
    files = sorted(args.folder.glob("*.npz"))
    if not files:
        raise UserError(f"{args.folder} holds no .npz file")
    for file in files:
        try:
            with np.load(file) as archive:
                golden = dict(archive)
            difference = compare(golden, args.device)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{file} is no golden file: {error}") from error
        if difference:
            print(f"{file.name}: DIFFERS: {difference}")
            return EXIT_NOT_FINISHED
        counts = ", ".join(
            f"{stage} {len(as_set(golden[stage]))}" for stage in STAGES if stage in golden
        )
        print(f"{file.name}: equal ({counts})")
    print(f"{len(files)} files equal")
    return EXIT_OK


def compare(golden: dict[str, np.ndarray], device: str) -> str | None:
    """Compare our stages with the stored ones.

    Args:
        golden: the arrays of a file.
        device: where to compute.

    Returns:
        What the first stage that differs has, or None.
    """
    config = ProMergeConfig(
        grid=golden["features"].shape[1:],
        stride=int(golden["stride"]),
        tau_b=float(golden["bipartition_tau"]),
        tau_f=float(golden["foreground_include_tau"]),
    )
    features = torch.from_numpy(golden["features"].astype(np.float32)).to(device)
    stages = grid_masks(features, config)
    for stage in STAGES:
        ours, theirs = getattr(stages, stage), golden.get(stage)
        if ours is None and theirs is None:
            continue
        if ours is None or theirs is None:
            who = "the stored run" if theirs is None else f"ours ({stages.reason})"
            return f"{who} stops before {stage}"
        ours, theirs = as_set(ours), as_set(theirs)
        if ours != theirs:
            return (
                f"{stage}: {len(ours - theirs)} masks of ours are not stored, "
                f"{len(theirs - ours)} stored ones are not ours ({len(theirs)} stored)"
            )
    for count, masks in (("n_fg", stages.foreground), ("n_bg", stages.candidates)):
        if count in golden and int(golden[count]) != len(masks):
            return f"{count}: {len(masks)}, stored {int(golden[count])}"
    return None


def as_set(masks: np.ndarray) -> set[bytes]:
    """Make masks comparable without their order and repetitions.

    Args:
        masks: (M, H, W), or one mask (H, W).

    Returns:
        Each different mask as bytes.
    """
    masks = masks.astype(bool)
    return {mask.tobytes() for mask in (masks if masks.ndim == 3 else masks[None])}


if __name__ == "__main__":
    run_tool(main)
