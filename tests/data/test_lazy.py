"""A large file as detectron2's dicts: equal to its own reader's, small in memory."""

import copy
import json
import os
import pickle

import pytest
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets.coco import load_coco_json

from promerge_d2 import add_promerge_config
from promerge_d2.data import register_promerge_instances
from promerge_d2.data.lazy import LazyCoco
from promerge_d2.utils.errors import UserError
from tests.helpers import coco_json, photo, save_image, square


@pytest.fixture
def labels(tmp_path):
    mask = square(8, 10, 1, 2, 5, 6)
    polygons = [[2, 1, 6, 1, 6, 5, 2, 5], [1, 1, 2, 2]]
    images = [
        ("a.png", 8, 10, [{"mask": mask, "score": 0.25}, {"mask": mask, "iscrowd": 1}]),
        ("none.png", 8, 10, []),
        ("söder.png", 8, 10, [{"mask": mask, "segmentation": polygons}]),
        (
            "d.png",
            8,
            10,
            [
                {"mask": mask, "segmentation": {"size": [8, 10], "counts": [16, 8, 56]}},
                {"mask": mask, "segmentation": [[1, 1, 2, 2]]},
            ],
        ),
    ]
    path = coco_json(tmp_path / "l.json", images)
    content = json.loads(path.read_text())
    content["annotations"].reverse()  # neither section in order
    content["images"].reverse()
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def test_classes_by_category(labels, tmp_path):
    """The categories of the file become a detector's classes; one that is none is refused."""
    content = json.loads(labels.read_text())
    content["categories"] = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
    for number, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = (1, 90)[number % 2]
    labels.write_text(json.dumps(content))
    theirs = load_coco_json(str(labels), str(tmp_path), "classes_by_category")  # sets the metadata
    classes = MetadataCatalog.get("classes_by_category").thing_dataset_id_to_contiguous_id
    found = [
        a["category_id"]
        for item in LazyCoco(labels, tmp_path, classes)
        for a in item["annotations"]
    ]
    assert found == [a["category_id"] for item in theirs for a in item["annotations"]]
    assert set(found) == {0, 1}
    items = pickle.loads(pickle.dumps(list(LazyCoco(labels, tmp_path, classes))))
    assert [a["category_id"] for item in items for a in item["annotations"]] == found
    with pytest.raises(UserError, match=r"category_id 90"):
        list(map(dict, LazyCoco(labels, tmp_path, {1: 0})))


def test_items_are_those_of_detectron2(labels, tmp_path):
    theirs = load_coco_json(str(labels), str(tmp_path), None, ["score"])
    for record in theirs:
        for annotation in record["annotations"]:
            annotation["category_id"] = 0
            mask = annotation["segmentation"]
            if isinstance(mask, dict) and isinstance(mask["counts"], bytes):
                mask["counts"] = mask["counts"].decode()
    ours = LazyCoco(labels, tmp_path)
    assert len(ours) == 4
    assert list(ours) == theirs
    assert [item["image_id"] for item in ours] == [1, 2, 3, 4]
    assert (ours[-1]["image_id"], len(ours[1:3])) == (4, 2)
    with pytest.raises(IndexError):
        ours[4]


def test_an_item_is_small_until_it_is_taken_out(labels, tmp_path):
    item = LazyCoco(labels, tmp_path)[0]
    pickled = pickle.dumps(item, protocol=-1)
    assert len(pickled) < 400
    assert b"segmentation" not in pickled
    for plain in (pickle.loads(pickled), copy.deepcopy(item)):
        assert type(plain) is dict
        assert plain == item
    (taken,) = DatasetFromList([item], copy=False)
    assert type(taken) is dict
    assert {annotation["score"] for annotation in taken["annotations"]} == {0.25, 1.0}


def test_a_file_that_changes_is_noticed(labels, tmp_path):
    items = LazyCoco(labels, tmp_path)
    labels.write_text(labels.read_text() + " ")
    with pytest.raises(UserError, match=r"l\.json .*changed"):
        items[0]["annotations"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda c: c["images"][0].update(id=1), r"images\[\d\] \(id 1\)"),
        (lambda c: c["images"][0].update(id=[]), r"images\[0\] \(id \[\]\)"),
        (lambda c: c["images"][0].pop("width"), r"images\[0\] .*'width'"),
        (lambda c: c["annotations"][0].update(image_id=9), r"annotations\[0\] .*image_id 9"),
        (lambda c: c.pop("annotations"), "l.json .*'annotations'"),
    ],
)
def test_broken_files_are_refused(labels, tmp_path, how, message):
    content = json.loads(labels.read_text())
    how(content)
    labels.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        LazyCoco(labels, tmp_path)


@pytest.fixture
def registered(tmp_path):
    """Two data sets of two photographs, one without a mask each."""
    mask = square(64, 96, 10, 8, 40, 48)
    names = ("lazy_one", "lazy_two")
    for name in names:
        for file in ("full.png", "empty.png"):
            save_image(tmp_path / name / file, photo(64, 96, (10, 8, 40, 48)))
        objects = [{"mask": mask, "score": 0.5}]
        images = [("full.png", 64, 96, objects), ("empty.png", 64, 96, [])]
        path = coco_json(tmp_path / f"{name}.json", images)
        register_promerge_instances(name, path, tmp_path / name)
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("filter_empty", [True, False])
def test_detectron2s_loader_uses_it_unchanged(registered, filter_empty):
    cfg = get_cfg()
    add_promerge_config(cfg)
    cfg.DATASETS.TRAIN = registered
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
    seen = []

    class Mapper(DatasetMapper):
        def __call__(self, record):
            assert type(record) is dict
            seen.append(record)
            return super().__call__(record)

    loader = iter(build_detection_train_loader(cfg, mapper=Mapper(cfg, True)))
    examples = [example for _ in range(6) for example in next(loader)]
    names = {os.path.basename(example["file_name"]) for example in examples}
    assert names == ({"full.png"} if filter_empty else {"full.png", "empty.png"})
    full = [e for e in examples if e["file_name"].endswith("full.png")]
    assert all(example["instances"].gt_masks.tensor.sum() > 0 for example in full)
    scores = {a["score"] for record in seen for a in record["annotations"]}
    assert scores == {0.5}


def test_what_stays_in_the_loader_is_places(registered):
    dicts = get_detection_dataset_dicts(list(registered), filter_empty=True)
    assert len(dicts) == 2
    kept = DatasetFromList(dicts, copy=False)._lst
    assert kept._lst.numel() < 2 * 400
