"""The sample data: its annotations, and how scenes are composed of them."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from promerge_d2.cli.parser import run_tool
from promerge_d2.utils.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "datasets" / "prepare_sample.py"
spec = importlib.util.spec_from_file_location("prepare_sample", SCRIPT)
sample = importlib.util.module_from_spec(spec)
sys.modules["prepare_sample"] = sample  # dataclasses look their module up
spec.loader.exec_module(sample)

RECIPE = json.loads(sample.ANNOTATIONS.read_text(encoding="utf-8"))
IMAGES = {image["id"]: image for image in RECIPE["images"]}


def rectangle(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def annotation(key, image_id, *polygons, truncated=()):
    return {
        "id": key,
        "image_id": image_id,
        "name": f"object {key}",
        "truncated": list(truncated),
        "segmentation": list(polygons),
    }


def flat(colour, w=60, h=60):
    return np.full((h, w, 3), colour, np.uint8)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A package with four made-up photographs, and a recipe for them in place of the real one."""
    package = tmp_path / "packages" / "toy_photos"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    rng = np.random.default_rng(0)
    images = []
    for key, name, split in ((1, "a", "train"), (2, "b", "test"), (3, "c", "train")):
        path = package / f"{name}.png"
        Image.fromarray(rng.integers(0, 256, (80, 100, 3), np.uint8)).save(path)
        images.append(
            {
                "id": key,
                "file_name": path.name,
                "source": f"toy_photos/{path.name}",
                "package": "toy-photos",
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "width": 100,
                "height": 80,
                "split": split,
                "licence": "made by the test",
            }
        )
    recipe = {
        "info": {},
        "images": images,
        "annotations": [
            annotation(1, 1, rectangle(10, 10, 30, 40)),
            annotation(2, 1, rectangle(30, 20, 30, 40)),
            annotation(3, 1, rectangle(70, 50, 30, 30), truncated=("right", "bottom")),
            annotation(4, 2, rectangle(20, 20, 40, 40)),
            annotation(5, 2, rectangle(60, 10, 30, 20)),
        ],
        "cutouts": [
            {"image_id": 1, "annotation_ids": [1, 2]},
            {"image_id": 1, "annotation_ids": [3]},
            {"image_id": 2, "annotation_ids": [4]},
            {"image_id": 2, "annotation_ids": [5]},
        ],
        "backgrounds": [
            {"image_id": 3, "crop": [0, 0, 100, 80], "split": "train"},
            {"image_id": 2, "crop": [0, 60, 100, 20], "split": "test"},
        ],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(sample, "ANNOTATIONS", path)
    return package


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ------------------------------------------------------------------------------ annotations.json


def test_annotations_are_well_formed():
    assert [item["id"] for item in RECIPE["images"]] == list(range(1, len(IMAGES) + 1))
    ids = [item["id"] for item in RECIPE["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    assert len({image["file_name"] for image in IMAGES.values()}) == len(IMAGES)
    for item in RECIPE["annotations"]:
        image = IMAGES[item["image_id"]]
        assert item["name"]
        assert set(item["truncated"]) <= set(sample.SIDES)
        for polygon in item["segmentation"]:
            points = np.array(polygon).reshape(-1, 2)
            assert len(points) >= 3
            assert (points >= 0).all(), item["name"]
            assert (points <= [image["width"], image["height"]]).all(), item["name"]


def test_every_object_shows_and_touches_the_sides_that_cut_it():
    for key, image in IMAGES.items():
        annotations = [item for item in RECIPE["annotations"] if item["image_id"] == key]
        masks = sample.visible_masks(annotations, image["height"], image["width"])
        assert (masks.sum(0) <= 1).all()
        for item, mask in zip(annotations, masks, strict=True):
            assert mask.sum() >= 200, item["name"]
            edges = {"left": mask[:, 0], "top": mask[0], "right": mask[:, -1], "bottom": mask[-1]}
            touched = {side for side, edge in edges.items() if edge.any()}
            assert touched == set(item["truncated"]), item["name"]


def test_no_photograph_is_in_both_splits():
    assert {image["split"] for image in IMAGES.values()} == {"train", "test"}
    sources = [image["source"] for image in IMAGES.values()]
    assert len(set(sources)) == len(sources)
    assert len({image["sha256"] for image in IMAGES.values()}) == len(sources)
    for item in RECIPE["backgrounds"]:
        assert item["split"] == IMAGES[item["image_id"]]["split"]


def test_cutouts_and_backgrounds_fit_their_photographs():
    owners = {item["id"]: item["image_id"] for item in RECIPE["annotations"]}
    for item in RECIPE["cutouts"]:
        assert {owners[key] for key in item["annotation_ids"]} == {item["image_id"]}
    for item in RECIPE["cutouts"] + RECIPE["backgrounds"]:
        image = IMAGES[item["image_id"]]
        x, y, w, h = item.get("crop", [0, 0, image["width"], image["height"]])
        assert min(x, y) >= 0
        assert min(w, h) > 0
        assert x + w <= image["width"]
        assert y + h <= image["height"]


def test_backgrounds_hold_no_annotated_object():
    for item in RECIPE["backgrounds"]:
        image = IMAGES[item["image_id"]]
        annotations = [a for a in RECIPE["annotations"] if a["image_id"] == image["id"]]
        x, y, w, h = item["crop"]
        masks = sample.visible_masks(annotations, image["height"], image["width"])
        assert not masks[:, y : y + h, x : x + w].any(), (image["file_name"], item["crop"])


@pytest.mark.parametrize("key", sorted(IMAGES))
def test_installed_photographs_are_the_annotated_ones(key):
    image = IMAGES[key]
    pytest.importorskip(image["source"].split("/")[0])
    with Image.open(sample.locate(image)) as picture:
        assert picture.size == (image["width"], image["height"])


# ------------------------------------------------------------------------------ parts of a scene


def test_a_later_annotation_hides_an_earlier_one():
    masks = sample.visible_masks(
        [annotation(1, 1, rectangle(1, 1, 4, 4)), annotation(2, 1, rectangle(3, 2, 4, 2))], 6, 8
    )
    expected = np.zeros((2, 6, 8), np.uint8)
    expected[0, 1:5, 1:5] = 1
    expected[0, 2:4, 3:5] = 0
    expected[1, 2:4, 3:7] = 1
    np.testing.assert_array_equal(masks, expected)


def test_an_object_may_have_several_polygons():
    parts = rectangle(0, 0, 2, 3), rectangle(5, 1, 3, 3)
    masks = sample.visible_masks([annotation(1, 1, *parts)], 6, 8)
    assert masks.sum() == 6 + 9


def test_cut_out_ends_exactly_at_truncated_sides_only():
    photo = flat((200, 200, 200), w=20, h=10)
    mask = np.zeros((1, 10, 20), np.uint8)
    mask[0, 4:, 5:11] = 1
    photo[mask[0] > 0] = (90, 30, 10)
    cutout = sample.cut_out(photo, mask, (7,), frozenset({"bottom"}))
    rim = sample.MARGIN
    assert cutout.layers.shape == (1, rim + 6, rim + 6 + rim)
    assert cutout.layers[0, rim:, rim:-rim].all()
    assert cutout.layers.sum() == 36
    assert (cutout.rgb == (90, 30, 10)).all()  # nothing of the old background in the rim


def test_cut_out_of_a_crop():
    mask = np.zeros((1, 10, 20), np.uint8)
    mask[0, 2:9, 5:11] = 1
    cutout = sample.cut_out(
        flat((1, 2, 3), w=20, h=10), mask, (7,), frozenset({"bottom"}), (0, 0, 20, 6)
    )
    assert cutout.layers.sum() == 4 * 6
    assert cutout.layers[0, -1].any()


def test_thin_objects_keep_their_own_colours():
    rgb, mask = flat((255, 255, 255), w=9, h=9), np.zeros((9, 9), bool)
    mask[:, 4] = True
    rgb[mask] = np.arange(9)[:, None] * 10
    out = sample.continue_colours(rgb, mask)
    np.testing.assert_array_equal(out[:, 4], rgb[:, 4])
    np.testing.assert_array_equal(out[3, :, 0], np.full(9, 30))


def test_paste_of_two_squares_with_known_overlap():
    background = flat((10, 20, 30), w=12, h=10).astype(np.float32)
    picture, owner = background, np.zeros((10, 12), np.int32)
    full = np.ones((1, 4, 4), np.float32)
    red, green = (flat(c, 4, 4).astype(np.float32) for c in ((255, 0, 0), (0, 255, 0)))
    picture, owner = sample.paste(picture, owner, red, full, 2, 1, 1)
    picture, owner = sample.paste(picture, owner, green, full, 4, 3, 2)
    expected = np.zeros((10, 12), np.int32)
    expected[1:5, 2:6] = 1
    expected[3:7, 4:8] = 2
    np.testing.assert_array_equal(owner, expected)
    assert (owner == 1).sum() == 16 - 4
    assert (picture[expected == 1] == (255, 0, 0)).all()
    assert (picture[expected == 2] == (0, 255, 0)).all()
    np.testing.assert_array_equal(picture[expected == 0], background[expected == 0])


def test_paste_beyond_the_corner_and_soft_edges():
    picture, owner = np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.int32)
    cover = np.ones((2, 3, 3), np.float32) * 0.5
    cover[:, :, 2] = [[0.1], [0.3]]  # together 0.4: mixed in, but nobody's
    cover[0, 2, 1] = 0.2
    white = np.full((3, 3, 3), 100, np.float32)
    picture, owner = sample.paste(picture, owner, white, cover, -1, -1, 5)
    assert owner[:2, :2].tolist() == [[5, 0], [6, 0]]
    np.testing.assert_allclose(picture[:2, :2, 0], [[100, 40], [70, 40]], rtol=1e-6)
    assert picture.sum() == pytest.approx(3 * (100 + 40 + 70 + 40))


@pytest.mark.parametrize(
    ("sides", "size", "expected"),
    [
        ((), 10, range(0, 11)),
        (("left",), 10, range(-2, 1)),
        (("right",), 10, range(10, 13)),
        (("left", "right"), 23, range(-3, 1)),
        (("top", "bottom"), 10, range(0, 11)),
    ],
)
def test_place_along_x(sides, size, expected):
    rng = np.random.default_rng(0)
    found = {sample.place(rng, frozenset(sides), size, 20, 0, 0.2) for _ in range(400)}
    assert found == set(expected)


def test_scale_follows_area_and_sides():
    mask = np.ones((1, 100, 100), np.uint8)
    square = sample.Cutout((1,), flat(0, 100, 100), mask)
    assert sample.fit_scale(square, 0.25, 400, 400) == pytest.approx(2)
    assert sample.fit_scale(square, 0.9, 400, 400) == sample.MAX_ENLARGE
    assert sample.fit_scale(square, 0.95, 200, 200) == pytest.approx(1.9)
    cut = sample.Cutout((1,), flat(0, 100, 100), mask, frozenset({"top", "bottom"}))
    assert sample.fit_scale(cut, 0.01, 400, 300) == pytest.approx(3)


def test_grey_stays_in_range_when_its_tone_changes():
    rng = np.random.default_rng(0)
    for value in (0, 128, 255):
        for _ in range(20):
            out = sample.change_tone(rng, flat(value), ((1.3, 1, 0.7),))
            assert out.min() >= 0
            assert out.max() <= 255


# ------------------------------------------------------------------------------ scenes


def made_cutouts():
    photo = np.random.default_rng(1).integers(0, 256, (100, 100, 3), np.uint8)
    masks = np.zeros((5, 100, 100), np.uint8)
    masks[0, 10:60, 10:60] = 1
    masks[1, 60:100, 0:50] = 1
    masks[2, 5:40, 60:75] = 1
    masks[3, 5:40, 75:95] = 1
    masks[4, 55:95, 60:90] = 1
    sides = {1: frozenset({"bottom"}), 4: frozenset({"left"})}
    groups = ((0,), (1,), (2, 3), (4,))
    return [
        sample.cut_out(photo, masks[list(group)], group, sides.get(group[0], frozenset()))
        for group in groups
    ]


def test_scenes_keep_the_promises(monkeypatch):
    ground = np.random.default_rng(2).integers(0, 256, (150, 200, 3), np.uint8)
    monkeypatch.setattr(sample, "draw_background", lambda *_: ground)
    met, flipped = set(), set()
    for seed in range(40):
        scene = sample.compose(np.random.default_rng(seed), made_cutouts(), [], 200, 150)
        assert sample.MIN_INSTANCES <= len(scene.keys) <= sample.MAX_INSTANCES
        assert len(set(scene.keys)) == len(scene.keys)
        assert scene.owner.max() == len(scene.keys)
        for number, key in enumerate(scene.keys, 1):
            mask = scene.owner == number
            assert mask.sum() >= sample.MIN_AREA
            met.add(key)
            if key == 1:
                assert mask[-1].any()
            if key == 4:
                assert mask[:, 0].any() or mask[:, -1].any()
                flipped.add(bool(mask[:, -1].any()))
        assert (scene.owner == 0).sum() >= (1 - sample.MAX_COVERED) * scene.owner.size
        touched = (scene.rgb != ground).any(-1)
        reach = 3  # of a soft edge, in pixels
        padded = np.pad(scene.owner > 0, reach)
        around = np.zeros_like(touched)
        for dy in range(2 * reach + 1):
            for dx in range(2 * reach + 1):
                around |= padded[dy : dy + 150, dx : dx + 200]
        assert not (touched & ~around).any()
    assert met == {0, 1, 2, 3, 4}
    assert flipped == {False, True}


def test_groups_stay_together():
    for seed in range(20):
        ground = [sample.Background(flat(100))]
        scene = sample.compose(np.random.default_rng(seed), made_cutouts(), ground, 200, 150)
        assert (2 in scene.keys) == (3 in scene.keys)


def test_at_least_half_of_every_object_shows():
    layers = np.ones((1, 60, 60), np.uint8)  # 3600 px, pasted at scale 1
    squares = [
        sample.Cutout((key,), flat(40 * key), layers, area=(0.16, 0.16)) for key in range(1, 7)
    ]
    overlaps = 0
    for seed in range(20):
        ground = [sample.Background(flat(100))]
        scene = sample.compose(np.random.default_rng(seed), squares, ground, 150, 150)
        shown = np.bincount(scene.owner.ravel())[1:]
        assert shown.min() >= 1800
        overlaps += (shown < 3600).sum()
    assert overlaps > 10


def test_scenes_that_cannot_be_are_refused():
    square = sample.Cutout((1,), flat(0, 4, 4), np.ones((1, 4, 4), np.uint8))
    ground = [sample.Background(flat(100))]
    with pytest.raises(UserError, match=r"64x48.*\b5\b"):
        sample.compose(np.random.default_rng(0), [square], ground, 64, 48, tries=5)


def test_a_scene_depends_on_seed_split_and_index_only():
    parts = made_cutouts(), [sample.Background(flat((50, 90, 10)))]
    scenes = [
        sample.make_scene(*arguments, *parts)
        for arguments in ((0, "train", 3), (0, "train", 3), (0, "train", 4), (1, "train", 3))
    ]
    scenes.append(sample.make_scene(0, "test", 3, *parts))
    prints = [(scene.rgb.tobytes(), scene.owner.tobytes()) for scene in scenes]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


# ------------------------------------------------------------------------------ data sets


def test_coco_record_of_a_square():
    mask = np.zeros((1, 6, 8), np.uint8)
    mask[0, 2:5, 3:7] = 1
    data = sample.coco_data_set({"seed": 0}, [("a.png", 8, 6, mask)])
    assert data["images"] == [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}]
    (item,) = data["annotations"]
    np.testing.assert_array_equal(mask_api.decode(item.pop("segmentation")), mask[0])
    assert item == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "area": 12,
        "bbox": [3.0, 2.0, 4.0, 3.0],
        "iscrowd": 0,
    }
    assert data["categories"] == [{"id": 1, "name": "object", "supercategory": "object"}]


def test_written_data_sets(toy, tmp_path):
    assert sample.prepare(tmp_path / "out", train=3, test=2)
    photos = json.loads((tmp_path / "out/photos/annotations.json").read_text())
    assert [image["file_name"] for image in photos["images"]] == ["a.png", "b.png"]
    assert [item["area"] for item in photos["annotations"]] == [1200 - 300, 1200, 900, 1600, 600]
    assert (tmp_path / "out/photos/images/a.png").read_bytes() == (toy / "a.png").read_bytes()
    for split, count in (("train", 3), ("test", 2)):
        data = json.loads((tmp_path / "out" / split / "annotations.json").read_text())
        assert data["info"]["seed"] == 0
        assert len(data["info"]["sources"]) == 3
        assert len(data["images"]) == count
        assert [item["id"] for item in data["annotations"]] == list(
            range(1, len(data["annotations"]) + 1)
        )
        for image in data["images"]:
            with Image.open(tmp_path / "out" / split / "images" / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])
            masks = [
                mask_api.decode(item["segmentation"])
                for item in data["annotations"]
                if item["image_id"] == image["id"]
            ]
            assert len(masks) >= 2
            assert np.sum(masks, 0).max() == 1


def test_same_arguments_give_the_same_bytes_and_counts_do_not_matter(toy, tmp_path):
    sample.prepare(tmp_path / "one", train=2, test=1)
    sample.prepare(tmp_path / "two", train=2, test=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    sample.prepare(tmp_path / "more", train=3, test=1)
    few, more = contents(tmp_path / "one"), contents(tmp_path / "more")
    for name in few:
        if name.startswith(("train/images/", "test/")):
            assert few[name] == more[name], name
    sample.prepare(tmp_path / "other", seed=1, train=2, test=1)
    name = "train/images/train_0000.jpg"
    assert contents(tmp_path / "other")[name] != few[name]


def test_a_second_run_does_nothing_unless_something_changed(toy, tmp_path, caplog):
    out = tmp_path / "out"
    caplog.set_level("INFO")
    assert sample.prepare(out, train=2, test=1)
    before = contents(out)
    caplog.clear()
    assert not sample.prepare(out, train=2, test=1)
    assert "nothing to do (--force repeats)" in caplog.text
    assert sample.prepare(out, train=2, test=1, force=True)
    assert contents(out) == before
    (out / "train/images/train_0001.jpg").unlink()
    assert sample.prepare(out, train=2, test=1)
    assert contents(out) == before
    assert sample.prepare(out, train=1, test=1)
    assert not (out / "train/images/train_0001.jpg").exists()


def test_photographs_alone_come_first_and_leave_scenes_alone(toy, tmp_path):
    out = tmp_path / "out"
    assert sample.prepare(out, train=2, test=1, only_photos=True)
    assert sorted(path.name for path in out.iterdir()) == ["photos"]
    assert sample.prepare(out, train=2, test=1)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert not sample.prepare(out, train=2, test=1, only_photos=True)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


def test_an_interrupted_run_is_repeated(toy, tmp_path, monkeypatch):
    out = tmp_path / "out"
    sample.prepare(out, train=2, test=1)
    whole = contents(out)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sample, "write_scenes", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sample.prepare(out, seed=5, train=2, test=1)
    assert sample.prepare(out, train=2, test=1)
    assert contents(out) == whole


# ------------------------------------------------------------------------------ refusals


def edit(changes):
    recipe = json.loads(sample.ANNOTATIONS.read_text())
    recipe["images"][0].update(changes)
    sample.ANNOTATIONS.write_text(json.dumps(recipe))


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["prepare_sample.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        run_tool(sample.main)
    return stop.value.code, capsys.readouterr().err


def test_missing_package(toy, tmp_path, monkeypatch, capsys):
    edit({"source": "no_such_photos/a.png", "package": "no-such-photos"})
    code, message = run(monkeypatch, capsys, "--output", tmp_path / "out")
    assert code == 3
    assert "a.png ships inside no-such-photos, which is not installed" in message
    assert "pip install no-such-photos" in message
    assert not (tmp_path / "out").exists()


def test_missing_file(toy, tmp_path, monkeypatch, capsys):
    (toy / "a.png").unlink()
    code, message = run(monkeypatch, capsys, "--output", tmp_path / "out")
    assert code == 3
    assert "the installed toy-photos has no file toy_photos/a.png" in message
    assert "pip install toy-photos --force-reinstall" in message


def test_changed_photograph(toy, tmp_path, monkeypatch, capsys):
    recorded = json.loads(sample.ANNOTATIONS.read_text())["images"][0]["sha256"]
    Image.fromarray(flat(7, 100, 80)).save(toy / "a.png")
    code, message = run(monkeypatch, capsys, "--output", tmp_path / "out")
    assert code == 3
    assert "a.png is not the photograph that was annotated" in message
    assert recorded in message
    assert "pip install toy-photos" in message


def test_bad_command_lines(toy, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, capsys)[0] == 3
    code, message = run(monkeypatch, capsys, "--output", tmp_path / "out", "--train", -1)
    assert code == 3
    assert "--train is -1; give 0 or more" in message
    (tmp_path / "file").touch()
    code, message = run(monkeypatch, capsys, "--output", tmp_path / "file")
    assert code == 3
    assert "cannot make the folder" in message


def test_command_line(toy, tmp_path, monkeypatch, capsys):
    arguments = ("--output", tmp_path / "out", "--train", 1, "--test", 1, "--seed", 4)
    assert run(monkeypatch, capsys, *arguments)[0] == 0
    stamp = json.loads((tmp_path / "out/stamp.json").read_text())
    assert (stamp["seed"], stamp["train"], stamp["test"]) == (4, 1, 1)


def test_a_new_recipe_is_noticed(toy, tmp_path, monkeypatch):
    sample.prepare(tmp_path / "out", train=1, test=1)
    recipe = copy.deepcopy(json.loads(sample.ANNOTATIONS.read_text()))
    recipe["cutouts"][0]["weight"] = 2
    sample.ANNOTATIONS.write_text(json.dumps(recipe))
    assert sample.prepare(tmp_path / "out", train=1, test=1)
    monkeypatch.setattr(sample, "RECIPE_VERSION", sample.RECIPE_VERSION + 1)
    assert sample.prepare(tmp_path / "out", train=1, test=1)
