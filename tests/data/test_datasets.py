import json
import os

import pytest
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    get_detection_dataset_dicts,
)

from promerge_d2 import add_promerge_config
from promerge_d2.data import (
    check_datasets,
    register_builtins,
    register_from_config,
    register_promerge_instances,
)
from promerge_d2.data.datasets import BUILTINS
from promerge_d2.utils.errors import UserError
from tests.helpers import coco_json, square


@pytest.fixture(autouse=True)
def catalog():
    """Forget the data sets that a test registers."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def config():
    cfg = get_cfg()
    add_promerge_config(cfg)
    return cfg


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    register_promerge_instances("mine", tmp_path / "gone.json", tmp_path)
    metadata = MetadataCatalog.get("mine")
    assert metadata.json_file == str(tmp_path / "gone.json")
    assert metadata.image_root == str(tmp_path)
    assert metadata.thing_classes == ["object"]
    assert metadata.evaluator_type == "class_agnostic"
    with pytest.raises(UserError, match=r"gone\.json: No such"):
        DatasetCatalog.get("mine")


def test_registering_again_changes_nothing(tmp_path):
    for _ in range(2):
        register_promerge_instances("mine", tmp_path / "a.json", tmp_path)
    register_promerge_instances("mine", str(tmp_path / "a.json"), str(tmp_path))
    assert DatasetCatalog.list().count("mine") == 1


@pytest.mark.parametrize(("json_file", "root"), [("b.json", "photos"), ("a.json", "elsewhere")])
def test_a_taken_name_is_refused(json_file, root):
    register_promerge_instances("mine", "a.json", "photos")
    with pytest.raises(UserError) as caught:
        register_promerge_instances("mine", json_file, root)
    assert str(caught.value) == (
        "the data set mine is registered already, with a.json and photos; "
        f"choose another name for {json_file} and {root}"
    )
    assert MetadataCatalog.get("mine").json_file == "a.json"


def test_all_categories_become_one_class_and_scores_stay(tmp_path):
    animals = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    mask = square(8, 10, 2, 1, 6, 4)
    objects = [
        {"mask": mask, "category_id": 3, "score": 0.25},
        {"mask": mask, "category_id": 7, "score": 1.0, "iscrowd": 1},
    ]
    file = coco_json(tmp_path / "l.json", [("deep/a.png", 8, 10, objects)], animals)
    register_promerge_instances("mine", file, tmp_path / "photos")
    (record,) = DatasetCatalog.get("mine")
    assert record["file_name"] == str(tmp_path / "photos" / "deep" / "a.png")
    assert (record["height"], record["width"], record["image_id"]) == (8, 10, 1)
    first, second = record["annotations"]
    assert [first["category_id"], second["category_id"]] == [0, 0]
    assert [first["score"], second["score"]] == [0.25, 1.0]
    assert [first["iscrowd"], second["iscrowd"]] == [0, 1]
    assert first["bbox"] == [2.0, 1.0, 4.0, 3.0]
    assert MetadataCatalog.get("mine").thing_classes == ["object"]


def test_a_file_without_scores_loads_too(tmp_path):
    file = coco_json(tmp_path / "l.json", [("a.png", 8, 10, [square(8, 10, 0, 0, 3, 3)])])
    content = json.loads(file.read_text())
    del content["annotations"][0]["score"]
    file.write_text(json.dumps(content))
    register_promerge_instances("mine", file, tmp_path)
    (record,) = DatasetCatalog.get("mine")
    assert "score" not in record["annotations"][0]


def test_images_without_masks_are_left_out_of_training(tmp_path):
    mask = square(8, 10, 0, 0, 3, 3)
    images = [("a.png", 8, 10, [mask]), ("none.png", 8, 10, []), ("c.png", 8, 10, [mask])]
    images.append(("crowd.png", 8, 10, [{"mask": mask, "iscrowd": 1}]))
    register_promerge_instances("mine", coco_json(tmp_path / "l.json", images), tmp_path)

    def names(filter_empty):
        dicts = get_detection_dataset_dicts(["mine"], filter_empty=filter_empty)
        return [os.path.basename(record["file_name"]) for record in dicts]

    assert names(True) == ["a.png", "c.png"]
    assert names(False) == ["a.png", "none.png", "c.png", "crowd.png"]


def test_data_sets_of_a_config(config, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    config.DATASETS.PROMERGE = [
        ["one", "$DETECTRON2_DATASETS/one/l.json", "$DETECTRON2_DATASETS/one"],
        ["two", "labels.json", "~/photos"],
    ]
    register_from_config(config)
    one, two = MetadataCatalog.get("one"), MetadataCatalog.get("two")
    assert (one.json_file, one.image_root) == (f"{tmp_path}/one/l.json", f"{tmp_path}/one")
    assert (two.json_file, two.image_root) == ("labels.json", os.path.expanduser("~/photos"))


def test_the_root_is_datasets_unless_set(config, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    config.DATASETS.PROMERGE = [["one", "$DETECTRON2_DATASETS/l.json", "$DETECTRON2_DATASETS"]]
    register_from_config(config)
    one = MetadataCatalog.get("one")
    assert (one.json_file, one.image_root) == ("datasets/l.json", "datasets")


def test_data_sets_come_from_yaml_and_the_command_line(config, tmp_path):
    (tmp_path / "c.yaml").write_text("DATASETS:\n  PROMERGE:\n    - [one, a.json, photos]\n")
    config.merge_from_file(str(tmp_path / "c.yaml"))
    assert config.DATASETS.PROMERGE == [["one", "a.json", "photos"]]
    config.merge_from_list(["DATASETS.PROMERGE", "[('two', 'b.json', 'more')]"])
    register_from_config(config)
    assert MetadataCatalog.get("two").image_root == "more"
    assert "one" not in DatasetCatalog.list()


@pytest.mark.parametrize("entry", [["one", "a.json"], "one", ["one", "a.json", "b", "c"]])
def test_a_malformed_entry_is_refused(config, entry):
    config.DATASETS.PROMERGE = [entry]
    with pytest.raises(UserError) as caught:
        register_from_config(config)
    assert str(caught.value) == (
        f"DATASETS.PROMERGE lists [name, json, image folder] each, not {entry!r}"
    )


def test_builtins_are_there_under_the_root(tmp_path, monkeypatch):
    assert set(BUILTINS) <= set(DatasetCatalog.list())
    kept = {name: dict(MetadataCatalog.get(name).as_dict()) for name in BUILTINS}
    try:
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        for name in BUILTINS:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_builtins()
        imagenet = MetadataCatalog.get("imagenet_promerge_train")
        assert imagenet.image_root == f"{tmp_path}/imagenet/train"
        with pytest.raises(UserError, match="No such file"):
            DatasetCatalog.get("imagenet_promerge_train")
    finally:
        for name, metadata in kept.items():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
            register_promerge_instances(
                name, metadata["json_file"], metadata["image_root"], metadata["how"]
            )


def test_an_unknown_name_gets_near_matches():
    with pytest.raises(UserError) as caught:
        check_datasets(["cls_agnostic_cocoo", "zzzzzz"])
    first, second = str(caught.value).splitlines()
    assert first.startswith(
        "the data set 'cls_agnostic_cocoo' is not registered (near matches: cls_agnostic_coco"
    )
    assert 'DATASETS.PROMERGE \'[["cls_agnostic_cocoo", ' in first
    assert second.startswith(
        "the data set 'zzzzzz' is not registered (no registered name is near); register your own"
    )


def test_missing_files_are_named_with_what_makes_them(tmp_path):
    (tmp_path / "photos").mkdir()
    labels = tmp_path / "l.json"
    register_promerge_instances("labels_missing", labels, tmp_path / "photos")
    register_promerge_instances("both", labels, tmp_path / "gone", how="make them by hand")
    with pytest.raises(UserError) as caught:
        check_datasets(("labels_missing", "both"))
    first, second = str(caught.value).splitlines()
    assert first == (
        f"the data set 'labels_missing' needs {labels}, which is not there; label images with: "
        f"promerge label --preset release {tmp_path / 'photos'} --output {labels}"
    )
    assert second == (
        f"the data set 'both' needs {labels} and {tmp_path / 'gone'}, which are not there; "
        "make them by hand"
    )
    labels.write_text("{}")
    check_datasets(["labels_missing"])
