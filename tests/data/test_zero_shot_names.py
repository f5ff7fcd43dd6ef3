"""The benchmarks by the names that CutLER's users know."""

from __future__ import annotations

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from promerge_d2.data.benchmarks import BENCHMARKS, PUBLISHED, SIX, published
from promerge_d2.data.datasets import check_datasets, register_benchmarks
from promerge_d2.utils.errors import UserError
from tests.helpers import coco_json, square


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty ``$DETECTRON2_DATASETS`` whose benchmarks are registered anew."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    before = {
        name: (DatasetCatalog.pop(name), MetadataCatalog.get(name))
        for name in BENCHMARKS
        if name in DatasetCatalog.list()
    }
    for name in before:
        MetadataCatalog.remove(name)
    yield tmp_path
    for name in BENCHMARKS:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    for name, (function, metadata) in before.items():
        DatasetCatalog.register(name, function)
        MetadataCatalog[name] = metadata


def test_names_and_places(root):
    register_benchmarks()
    register_benchmarks()  # again, as on a second import
    expected = {
        "coco": "coco/annotations/coco_cls_agnostic_instances_val2017.json",
        "coco20k": "coco/annotations/coco20k_trainval_gt.json",
        "lvis": "coco/annotations/lvis1.0_cocofied_val_cls_agnostic.json",
        "kitti": "kitti/annotations/trainval_cls_agnostic.json",
        "objects365": "objects365/annotations/zhiyuan_objv2_val_cls_agnostic.json",
        "sa1b": "sa1b/annotations/sa1b.json",
        "voc": "voc/annotations/trainvaltest_2007_cls_agnostic.json",
        "openimages": "openImages/annotations/openimages_val_cls_agnostic.json",
        "uvo": "uvo/annotations/val_sparse_cleaned_cls_agnostic.json",
        "clipart": "clipart/annotations/traintest_cls_agnostic.json",
    }
    for name, path in expected.items():
        metadata = MetadataCatalog.get(f"cls_agnostic_{name}")
        assert metadata.json_file == str(root / path)
        assert metadata.thing_classes == ["object"]
    with pytest.raises(UserError) as caught:
        check_datasets(["cls_agnostic_kitti"])
    assert "python datasets/prepare_kitti.py" in str(caught.value)
    assert "cvlibs.net" in str(caught.value)


def test_the_official_coco_file_serves_until_it_is_prepared(root):
    folder = root / "coco" / "annotations"
    folder.mkdir(parents=True)
    official = coco_json(
        folder / "instances_val2017.json", [("a.jpg", 9, 9, [square(9, 9, 1, 1, 4, 4)])]
    )
    register_benchmarks()
    assert MetadataCatalog.get("cls_agnostic_coco").json_file == str(official)
    (record,) = DatasetCatalog.get("cls_agnostic_coco")
    assert [item["category_id"] for item in record["annotations"]] == [0]
    ready = folder / "coco_cls_agnostic_instances_val2017.json"
    ready.write_bytes(official.read_bytes())
    assert BENCHMARKS["cls_agnostic_coco"].under(root).json_file == ready


def test_published_rows():
    assert [name.removeprefix("cls_agnostic_") for name in SIX] == [
        "coco", "coco20k", "lvis", "kitti", "objects365_16-40", "sa1b",
    ]  # fmt: skip
    assert published("cls_agnostic_sa1b")["ProMerge+"] == 7.8
    assert published("cls_agnostic_voc") == {}
    means = {method: sum(row) / 6 for method, row in PUBLISHED.items()}
    assert means == pytest.approx(
        {"MaskCut": 1.47, "ProMerge": 1.73, "CutLER, one round": 6.98, "ProMerge+": 7.88}, abs=0.01
    )
