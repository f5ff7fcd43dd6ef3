"""The demo: pictures and records of a detector with random weights, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from PIL import Image
from pycocotools import mask as mask_api

from promerge_d2.engine.setup import read_config
from promerge_d2.visualization.overlay import draw_records
from tests.engine.conftest import config, left_as_found, photos  # noqa: F401 - fixtures
from tests.helpers import photo, run_tool, save_image


@pytest.fixture
def weights(config, tmp_path):  # noqa: F811
    """Random weights in a file, and the config's file."""
    file = config()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(read_config(str(file), []))
    DetectionCheckpointer(model, str(tmp_path)).save("random")
    return tmp_path / "random.pth", file


@pytest.fixture
def demo(monkeypatch, capsys, weights):
    """``demo(...)``: exit code and all that was said; weights are given unless ``opts`` are."""

    def run(*arguments, opts=("MODEL.WEIGHTS", weights[0])):
        capsys.readouterr()
        code = run_tool(monkeypatch, "demo.py", "--config-file", weights[1], *arguments, *opts)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_one_picture_and_its_records(demo, photos, tmp_path):  # noqa: F811
    picture, records = tmp_path / "out.png", tmp_path / "found.json"
    arguments = ("--input", photos / "1.png", "--output", picture, "--json", records)
    code, said = demo(*arguments, "--confidence-threshold", "0.1")
    assert code == 0, said
    content = json.loads(records.read_text())
    found = content["annotations"]
    assert len(found) > 1
    assert f"1.png: {len(found)} objects of score 0.1" in said
    assert f"{max(a['score'] for a in found):.2f}" in said
    assert content["images"] == [{"id": 1, "file_name": "1.png", "width": 144, "height": 96}]
    assert content["info"]["config"] == "tiny.yaml"
    assert content["info"]["min_score"] == 0.1
    assert min(a["score"] for a in found) >= 0.1
    for annotation in found:
        assert annotation["area"] == mask_api.decode(annotation["segmentation"]).sum()
    pixels = photo(box=(12, 40, 48, 80), seed=1)
    assert (np.asarray(Image.open(picture)) == draw_records(pixels, found)).all()
    assert (np.asarray(Image.open(picture)) != pixels).any()


def test_what_is_below_the_threshold_is_not_drawn(demo, photos, tmp_path):  # noqa: F811
    code, said = demo(
        "--input", photos / "1.png", "--output", tmp_path / "o.png", "--confidence-threshold", "1"
    )
    assert code == 0, said
    assert "1.png: 0 objects of score 1" in said
    drawn = np.asarray(Image.open(tmp_path / "o.png"))
    assert (drawn == photo(box=(12, 40, 48, 80), seed=1)).all()


def test_many_images_and_a_broken_one(demo, photos, tmp_path):  # noqa: F811
    (photos / "1b.png").write_text("not an image")
    save_image(photos / "deep" / "0.png", photo())
    save_image(tmp_path / "other" / "x.jpg", photo())
    out = tmp_path / "out"
    inputs = (photos, tmp_path / "other" / "*.jpg")
    code, said = demo("--input", *inputs, "--output", out, "--json", tmp_path / "r.json")
    assert code == 2, said
    drawn = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png"))
    assert drawn == [
        "0.png.png",
        "1.png.png",
        "2.png.png",
        "3.png.png",
        "deep/0.png.png",
        "x.jpg.png",
    ]
    assert "1 images failed" in said
    assert "1b.png: " in said
    assert [i["id"] for i in json.loads((tmp_path / "r.json").read_text())["images"]] == [
        *(1, 2, 4, 5, 6, 7)
    ]
    assert (photos / "0.png").stat().st_size  # no photograph is written over


def test_without_weights_nothing_is_drawn(demo, photos, tmp_path):  # noqa: F811
    code, said = demo("--input", photos, "--output", tmp_path / "out", opts=())
    assert code == 3
    assert "MODEL.WEIGHTS" in said
    gone = ("MODEL.WEIGHTS", tmp_path / "gone.pth")
    code, said = demo("--input", photos, "--output", tmp_path / "out", opts=gone)
    assert (code, said.count("\n"), f"MODEL.WEIGHTS {gone[1]}" in said) == (3, 1, True)
    assert not list((tmp_path / "out").rglob("*"))


def test_weights_that_do_not_fit_are_refused(demo, weights, photos, tmp_path):  # noqa: F811
    opts = ("MODEL.WEIGHTS", weights[0], "MODEL.ROI_MASK_HEAD.NUM_CONV", "2")
    code, said = demo("--input", photos, "--output", tmp_path / "out", opts=opts)
    assert code == 3
    assert "roi_heads.mask_head.mask_fcn2.weight" in said


@pytest.mark.parametrize(
    ("inputs", "output", "more", "message"),
    [
        (["photos"], "out.png", [], "out.png"),
        (["photos/0.png"], "out.jpg", [], "PNG"),
        (["photos/0.png", "photos/0.png"], "out", [], "0.png.png"),
        (["nowhere"], "out", [], "nowhere"),
        (["photos"], "out", ["--confidence-threshold", "50"], "--confidence-threshold is 50"),
        (["photos"], "out", ["--json", "photos"], "write "),
    ],
)
def test_bad_input(monkeypatch, capsys, config, photos, tmp_path, inputs, output, more, message):  # noqa: F811
    inputs = [tmp_path / name for name in inputs]
    more = [tmp_path / value if value == "photos" else value for value in more]
    command = ("--config", config(), "--input", *inputs, "--output", tmp_path / output, *more)
    assert run_tool(monkeypatch, "demo.py", *command) == 3
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
