"""Shares of COCO's labelled training images, with COCO's classes (docs/recipe.md)."""

from __future__ import annotations

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.coco import load_coco_json

from promerge_d2.data.datasets import datasets_root

PERCENTAGES = (1, 2, 5, 10, 20, 30, 40, 50, 60, 80)


def register_semi_supervised() -> None:
    """Register ``coco_semi_{p}perc`` under ``$DETECTRON2_DATASETS``; nothing is read."""
    root = datasets_root()
    images = str(root / "coco/train2017")
    for percentage in PERCENTAGES:
        name = f"coco_semi_{percentage}perc"
        file = str(root / f"coco/annotations/{percentage}perc_instances_train2017.json")
        DatasetCatalog.register(
            name, lambda file=file, name=name: load_coco_json(file, images, name)
        )
        MetadataCatalog.get(name).set(
            json_file=file,
            image_root=images,
            evaluator_type="coco",
            how="get COCO's train2017 from cocodataset.org and the shares of its labels from "
            "dl.fbaipublicfiles.com/cutler/coco-smi/annotations.zip, or draw your own: "
            f"python datasets/prepare_coco_semi.py --percentage {percentage}",
            **_get_builtin_metadata("coco"),
        )
