"""Curves of training: what is drawn, read back from the figure."""

import json

import pytest
from matplotlib.figure import Figure
from PIL import Image

from promerge_d2.visualization.figures import plot_losses, read_losses


def write(file, *entries):
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


def test_of_a_resumed_run_the_later_entry_counts(tmp_path):
    file = write(
        tmp_path / "metrics.json",
        {"iteration": 19, "total_loss": 3.0},
        {"iteration": 39, "total_loss": 2.0},
        {"iteration": 19, "total_loss": 2.5},
        {"iteration": 40, "bbox/AP": 1.0},
    )
    with file.open("a") as killed:
        killed.write('{"iteration": 59, "total_l{"iteration": 59, "total_loss": 1.0}\n')
    logged = read_losses(file)
    assert [(entry["iteration"], entry["total_loss"]) for entry in logged] == [(19, 2.5), (39, 2.0)]


def test_losses_are_drawn_run_by_run(tmp_path, monkeypatch):
    kept, save = [], Figure.savefig

    def keep(figure, *more, **options):
        kept.append(figure)
        save(figure, *more, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    first = [{"iteration": i, "total_loss": 4.0 - i, "loss_mask": 1.0, "lr": 9.0} for i in (0, 1)]
    second = [{"iteration": 5, "total_loss": 1.0, "stage0/droploss/kept_background": 0.5}]
    plot_losses({"round 0": first, "round 1": second}, tmp_path / "losses.png")
    (figure,) = kept
    drawn = {
        axes.get_title(): {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
        for axes in figure.axes
    }
    assert drawn == {
        "round 0": {"loss_mask": [1.0, 1.0], "total_loss": [4.0, 3.0]},
        "round 1": {"total_loss": [1.0]},
    }
    with Image.open(tmp_path / "losses.png") as picture:
        assert picture.size == pytest.approx((13 * 150, 3.2 * 150), abs=1)
