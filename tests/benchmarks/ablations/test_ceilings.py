"""Ceilings of each stage: coverage by hand and by pixels, the experiment on made photographs."""

import csv

import numpy as np
import pytest
from pycocotools import mask as mask_api

from benchmarks.ablations import ceilings
from benchmarks.ablations.experiments import Setup, run_candidates
from benchmarks.ablations.sweep import LabelledImages
from promerge_d2.labeler.regions.labeler import RegionsLabeler
from promerge_d2.utils.errors import UserError
from tests.helpers import coco_json, save_image, square, use_tiny
from tests.helpers import photo as make_photo


def test_coverage_of_patches_is_that_of_their_pixels():
    """Masks of a 6 x 8 grid against an object of a 48 x 64 photograph, pixel by pixel."""
    rng = np.random.default_rng(0)
    truth = rng.random((48, 64)) < 0.3
    rle = mask_api.encode(np.asfortranarray(truth.astype(np.uint8)))
    masks = rng.random((5, 6, 8)) < 0.5
    pixels = masks.repeat(8, axis=1).repeat(8, axis=2)
    expected = [(truth & one).sum() / (truth | one).sum() for one in pixels]
    shares = ceilings._shares(rle, 6, 8)
    assert ceilings._iou(shares[None], masks)[0] == pytest.approx(expected, abs=1e-6)


def test_figures_by_hand():
    coverage = np.array([0.49, 0.5, 0.76, 1.0])  # 0, 1, 6 and 10 of the 10 thresholds
    areas = np.array([10, 32**2, 96**2 - 1, 96**2])
    figures = ceilings.figures_of([3, 4], coverage, areas)
    assert figures == {
        "masks": "3.5",
        "AR": "42.50",
        "R50": "75.00",
        "ARs": "0.00",
        "ARm": "35.00",
        "ARl": "100.00",
    }
    assert ceilings.figures_of([1], coverage[:1], areas[:1])["ARl"] == ""


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """An experiment on two photographs, one without an object, by a labeler of a tiny network."""
    weights = use_tiny(monkeypatch, tmp_path, 0)

    def make(**options):
        named = {"backbone": "tiny", "weights": weights, "grid": 12, "keep_aspect": False}
        return RegionsLabeler.from_preset("best", **named, **options)

    box = (24, 32, 60, 64)  # of whole patches: 12 x 8 pixels each
    for name in ("a.png", "b.png"):
        save_image(tmp_path / "photos" / name, make_photo(box=box))
    images = [("a.png", 96, 144, [square(96, 144, *box)]), ("b.png", 96, 144, [])]
    truth = coco_json(tmp_path / "truth.json", images)
    labelled = LabelledImages.read(tmp_path / "photos", truth)
    return Setup(make, "best", tmp_path / "out", tmp_path / "cache", labelled, [], workers=0)


def test_the_ladder_of_a_made_photograph(setup):
    run_candidates("candidates", setup)
    with (setup.output / "candidates.csv").open() as file:
        rows = {row["stage"]: row for row in csv.DictReader(file)}
    assert next(iter(rows)) == ceilings.GRID
    assert list(rows)[-1] == ceilings.LAST
    assert rows[ceilings.GRID]["masks"] == "1.0"
    assert rows[ceilings.GRID]["AR"] == rows[ceilings.GRID]["ARm"] == "100.00"
    assert rows[ceilings.GRID]["ARs"] == ""
    pool = rows["candidates, all"]
    kinds = [row for stage, row in rows.items() if stage.startswith("candidates: ")]
    assert max(float(row["AR"]) for row in kinds) == float(pool["AR"])
    assert float(pool["masks"]) <= sum(float(row["masks"]) for row in kinds)
    left = rows["after scores and suppression"]
    assert float(left["AR"]) <= float(pool["AR"]) <= 100
    assert float(rows["refined, the first 5"]["masks"]) <= 5


def test_a_run_that_was_stopped_adds_what_is_missing(setup):
    run_candidates("candidates", setup)
    file = setup.output / "candidates.csv"
    whole = file.read_text()
    file.write_text("".join(whole.splitlines(keepends=True)[:3]))
    run_candidates("candidates", setup)
    assert file.read_text() == whole


def test_boxes_have_no_ceilings(setup, tmp_path, coco):
    import json

    truth = coco([(1, 24, 32, 36, 32)], size=(144, 96), masks=False, names=["a.png"])
    (tmp_path / "boxes.json").write_text(json.dumps(truth))
    boxes = LabelledImages.read(tmp_path / "photos", tmp_path / "boxes.json")
    with pytest.raises(UserError, match=r"candidates.*masks"):
        run_candidates("candidates", Setup(**{**vars(setup), "images": boxes}))
