"""Stages of a photograph: those of the labeler, for any thresholds."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from promerge_d2.labeler import LABELERS, labeler_of_preset
from promerge_d2.studio.catalog import Keep, Wanted
from promerge_d2.studio.session import Session
from promerge_d2.studio.stage_view import SLIDERS, StageView
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.threads import one_thread
from tests.helpers import coco_json, photo, save_image, square, use_tiny

GRID = 12


@pytest.fixture
def labels(tmp_path):
    """One photograph, on which the tiny network tells the object from the rest, and three masks."""
    save_image(tmp_path / "data" / "a.png", photo())
    masks = [
        square(96, 144, 0, 0, 9, 9),
        square(96, 144, 84, 16, 120, 48),
        square(96, 144, 5, 5, 50, 50),
    ]
    return coco_json(tmp_path / "data" / "labels.json", [("a.png", 96, 144, masks)])


@pytest.fixture
def made(monkeypatch, tmp_path):
    """A labeler of the tiny network by preset, its weights."""
    weights = use_tiny(monkeypatch, tmp_path)

    def make(preset):
        return labeler_of_preset(preset).from_preset(
            preset, backbone="tiny", weights=weights, grid=GRID, refine="none"
        )

    return make, str(weights)


def session_of(labels, info, weights=None):
    content = json.loads(labels.read_text())
    path = labels.with_name(f"{info.get('preset', 'x')}.json")
    path.write_text(json.dumps({"info": info, **content}))
    return Session(path, weights=weights)


@pytest.mark.parametrize("preset", ["release", "best", "maskcut"])
def test_panels_are_of_the_labelers_stages(made, labels, preset):
    make, weights = made
    labeler = make(preset)
    session = session_of(labels, json.loads(json.dumps(labeler.describe(preset))), weights)
    try:
        about = session.stages.describe()
        assert about["unavailable"] == ""
        assert all(slider["help"] for slider in about["sliders"])
        found = session.run_stages(0, {})
        photo = labels.parent / session.catalog.names[0]
        with one_thread():
            (image,) = labeler.forward([labeler.processor.preprocess(photo)])
            grid = labeler.grid_masks(image.features, labeler.config)
        rows, columns = image.features.shape[-2:]
        assert (found["rows"], found["columns"]) == (rows, columns)
        assert found["masks"] == len(grid.merged) > 0
        features = found["panels"][0]["pictures"][0]["rgb"]
        assert len(base64.b64decode(features)) == 3 * rows * columns
        assert all(panel["reached"] for panel in found["panels"])
        again = session.run_stages(0, {})
        assert again["panels"] == found["panels"]
        assert again["seconds"]["features"] < found["seconds"]["features"]
    finally:
        session.close()


def test_sliders_act(made, labels):
    make, weights = made
    session = session_of(labels, make("release").describe("release"), weights)
    try:
        few = session.run_stages(0, {"stride": 11})
        many = session.run_stages(0, {"stride": 1})
        prompts = [next(p for p in f["panels"] if p["title"] == "Prompts") for f in (few, many)]
        assert len(prompts[0]["points"]) < len(prompts[1]["points"]) == GRID * GRID
        none = session.run_stages(0, {"min_background": 1})
        assert none["reason"].startswith("small_background")
        assert [panel["reached"] for panel in none["panels"]][-1] is False
        for settings, named in (
            ({"grid": 100}, "'grid'"),
            ({"tau_b": 5}, "tau_b is 5"),
            ({"tau_b": float("nan")}, "tau_b is nan"),
        ):
            with pytest.raises(UserError, match=named):
                session.run_stages(0, settings)
    finally:
        session.close()


def test_new_masks_take_the_place_of_the_undecided(made, labels):
    make, weights = made
    labeler = make("release")
    session = session_of(labels, labeler.describe("release"), weights)
    try:
        session.edit(0, "accept", [1])
        session.replace(0, {})
        with one_thread():
            expected = labeler(labels.parent / session.catalog.names[0])
        masks = {mask["number"]: mask["state"] for mask in session.photograph(0, "large")["masks"]}
        assert masks == {0: "rejected", 1: "accepted", 2: "rejected"} | {
            3 + number: "open" for number in range(len(expected))
        }
        saved = session.save(Keep(2), False)
        content = json.loads(Path(saved["file"]).read_text())
        fresh = [each["segmentation"] for each in content["annotations"]][1:]
        assert fresh == [record["segmentation"] for record in expected]
        assert session.find(Keep(2), Wanted())["kept"] == 1 + len(expected) == saved["masks"]
        log = session.log.path
        session.undo()
        assert len(session.photograph(0, "large")["masks"]) == 3
        session.redo()
    finally:
        session.close()
    again = Session(session.catalog.path)  # the new masks are in the log
    assert len(again.photograph(0, "large")["masks"]) == 3 + len(expected)
    again.close()
    assert len(log.read_text().splitlines()) == 5


def test_why_there_is_none(made, labels, tmp_path):
    make, weights = made
    info = make("release").describe("release")
    other = tmp_path / "other.pth"
    state = torch.load(weights)
    torch.save({name: value + 1 for name, value in state.items()}, other)
    backbone = info["backbone"]
    for changed, file, named in (
        ({}, None, "does not say which labeler"),
        ({**info, "labeler": "detector"}, None, "does not say which labeler"),
        ({**info, "backbone": {**backbone, "name": "unheard"}}, None, "'unheard'"),
        ({**info, "backbone": {**backbone, "name": "dino_vitb8"}}, None, "dino_vitb8 are not on"),
        (info, str(other), backbone["weights_sha256"][:12]),
        (info, str(tmp_path / "none.pth"), r"none\.pth"),
    ):
        with pytest.raises(UserError, match=named):
            StageView(changed, file).run(0, labels.parent / "a.png", {})


def test_every_setting_of_the_grid_has_a_slider():
    assert set(SLIDERS) == set(LABELERS)
    for name, sliders in SLIDERS.items():
        config = LABELERS[name].config_class()
        for setting, (low, high, step) in sliders.items():
            value = getattr(config, setting)
            assert low <= value <= high
            assert np.isclose((value - low) / step, round((value - low) / step))
