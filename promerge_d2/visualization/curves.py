"""Curves of training."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from promerge_d2.utils.files import atomic_path


def read_losses(file: Path) -> list[dict]:
    """What detectron2 logged in ``metrics.json``, by iteration.

    Of an iteration that a stopped run had logged before it went on from a checkpoint, the later
    entry counts. A line that was being written when the run was killed is left out.

    Returns:
        Dicts with ``iteration``, ``total_loss`` and the other losses.
    """
    logged = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "total_loss" in entry:
            logged[entry["iteration"]] = entry
    return [logged[iteration] for iteration in sorted(logged)]


def plot_losses(runs: Mapping[str, Sequence[dict]], path: str | os.PathLike) -> None:
    """Draw the losses of trainings, one panel each, as a PNG.

    Args:
        runs: title to what ``read_losses`` gave; not empty.
        path: where to.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    width = 3 + 5 * len(runs)
    picture, panels = plt.subplots(
        1, len(runs), figsize=(width, 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (title, logged) in zip(panels[0], runs.items(), strict=True):
        iterations = [entry["iteration"] for entry in logged]
        keys = {key for entry in logged for key in entry if "loss" in key and "droploss" not in key}
        for key in sorted(keys):
            style = {"linewidth": 1}
            if key == "total_loss":
                style = {"linewidth": 2.5, "color": "black", "zorder": 3}
            values = [entry.get(key, float("nan")) for entry in logged]
            axes.plot(iterations, values, label=key, **style)
        axes.set(title=title, xlabel="iteration", yscale="log")
    panels[0][0].set(ylabel="loss (median of 20)")
    panels[0][-1].legend(fontsize=6, ncol=2, loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic_path(path) as part:
        picture.savefig(part, dpi=150, format="png")
    plt.close(picture)
