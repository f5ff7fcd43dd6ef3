import itertools
import math

import pytest
import torch
from detectron2.config import get_cfg

from promerge_d2 import add_promerge_config
from promerge_d2.data import check_datasets
from promerge_d2.data.benchmarks import BENCHMARKS
from promerge_d2.data.datasets import BUILTINS, PERCENTAGES
from promerge_d2.data.mapper import LabelChoice
from promerge_d2.engine import ProMergeTrainer
from promerge_d2.engine.setup import (
    check_classes,
    check_device,
    check_labels,
    check_masks,
    read_config,
)
from promerge_d2.features import BACKBONES
from promerge_d2.utils.errors import UserError
from tests.helpers import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))

# docs/recipe.md, "Where the values come from"
CASCADE = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.MASK_ON": True,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 4000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.NMS_THRESH": 0.65,
    "MODEL.ROI_HEADS.NAME": "DropLossCascadeROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 1,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH": 0.01,
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": (0.5, 0.6, 0.7),
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": (
        (10.0, 10.0, 5.0, 5.0),
        (20.0, 20.0, 10.0, 10.0),
        (30.0, 30.0, 15.0, 15.0),
    ),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "WeightedMaskHead",  # detectron2's, without weights
    "MODEL.PROPOSAL_GENERATOR.NAME": "IgnoringRPN",  # detectron2's, without ignored regions
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "DATASETS.TRAIN": ("imagenet_promerge_train",),
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.MAX_ITER": 160_000,
    "SOLVER.STEPS": (80_000,),
    "SOLVER.GAMMA": 0.02,
    "SOLVER.WEIGHT_DECAY": 5e-5,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.WARMUP_FACTOR": 1 / 1000,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm",  # each tensor; "full_model" would be all at once
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
    "SOLVER.AMP.ENABLED": True,
    "INPUT.MIN_SIZE_TRAIN": (240, 320, 480, 640, 672, 704, 736, 768, 800, 1024),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.CROP.ENABLED": False,
    "INPUT.MASK_FORMAT": "bitmask",
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "INPUT.COPY_PASTE.ENABLED": True,
    "INPUT.COPY_PASTE.RATE": 1.0,
    "INPUT.COPY_PASTE.MIN_RATIO": 0.3,
    "INPUT.COPY_PASTE.MAX_RATIO": 1.0,
}


# column "mask_rcnn", where it differs
MASK_RCNN = {
    **{key: value for key, value in CASCADE.items() if "CASCADE" not in key},
    "MODEL.ROI_HEADS.NAME": "DropLossStandardROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.AMP.ENABLED": False,
}
# column "self_train (cascade)"
ROUND = {
    **CASCADE,
    "MODEL.WEIGHTS": "output/promerge_cascade/model_final.pth",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH": -1.0,  # DropLoss off
    "DATASETS.TRAIN": ("imagenet_promerge_train_r1",),
    "SOLVER.BASE_LR": 0.005,
    "SOLVER.MAX_ITER": 80_000,
    "SOLVER.STEPS": (79_999,),
    "SOLVER.GAMMA": 1.0,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "INPUT.COPY_PASTE.MIN_RATIO": 0.5,
}
SECOND_ROUND = {
    **ROUND,
    "MODEL.WEIGHTS": "output/promerge_cascade_r1/model_final.pth",
    "DATASETS.TRAIN": ("imagenet_promerge_train_r2",),
}
RECIPES = {
    "promerge_cascade": CASCADE,
    "promerge_mask_rcnn": MASK_RCNN,
    "promerge_cascade_r1": ROUND,
    "promerge_cascade_r2": SECOND_ROUND,
}


def value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_merges(file):
    cfg = read_config(str(file), [])
    classes = 80 if file.parent.name == "semi_supervised" else 1
    assert classes == cfg.MODEL.ROI_HEADS.NUM_CLASSES
    check_masks(cfg)
    check_labels(cfg)
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.INPUT.MASK_FORMAT == "bitmask"
    assert cfg.MODEL.FROZEN_VIT.BACKBONE in BACKBONES


def test_there_are_configs():
    assert {"promerge_cascade", "Base-RCNN-FPN", "Base-Frozen-ViT", "quickstart"} <= {
        file.stem for file in CONFIGS
    }


@pytest.fixture(scope="module")
def cascade():
    return read_config(str(ROOT / "configs" / "promerge_cascade.yaml"), [])


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request):
    return request.param, read_config(str(ROOT / "configs" / f"{request.param}.yaml"), [])


def test_every_key_is_that_of_the_published_recipe(recipe):
    name, cfg = recipe
    found = {key: value(cfg, key) for key in RECIPES[name]}
    assert found == RECIPES[name]
    assert [type(f) for f in found.values()] == [type(w) for w in RECIPES[name].values()]


def test_the_recipes_differ_where_they_are_said_to():
    assert {name: len(wanted) for name, wanted in RECIPES.items()} == {
        "promerge_cascade": len(CASCADE),
        "promerge_mask_rcnn": len(CASCADE) - 2,
        "promerge_cascade_r1": len(CASCADE) + 1,
        "promerge_cascade_r2": len(CASCADE) + 1,
    }
    assert len(CASCADE) >= 70


def test_the_cascade_names_known_data(cascade):
    assert set(cascade.DATASETS.TRAIN) <= set(BUILTINS)
    assert set(cascade.DATASETS.TEST) <= set(BENCHMARKS)
    assert cascade.MODEL.WEIGHTS == "weights/dino_resnet50_d2.pkl"


def test_every_recipe_names_known_data(recipe):
    _, cfg = recipe
    assert set(cfg.DATASETS.TRAIN) <= set(BUILTINS)
    assert set(cfg.DATASETS.TEST) <= set(BENCHMARKS)


def test_each_round_starts_where_the_one_before_ends():
    names = ["promerge_cascade", "promerge_cascade_r1", "promerge_cascade_r2"]
    configs = [read_config(str(ROOT / "configs" / f"{name}.yaml"), []) for name in names]
    for before, after in itertools.pairwise(configs):
        assert f"{before.OUTPUT_DIR}/model_final.pth" == after.MODEL.WEIGHTS


# Semi-supervised


def test_a_share_of_coco_for_every_percentage():
    files = (ROOT / "configs" / "semi_supervised").glob("promerge_cascade_*perc.yaml")
    found = {}
    for file in files:
        cfg = read_config(str(file), [])
        percentage = int(file.stem.removeprefix("promerge_cascade_").removesuffix("perc"))
        found[percentage] = cfg.DATASETS.TRAIN
        # 90,000 * sqrt(share), to the hundred; steps at 2/3 and 8/9 of it
        last = round(90_000 * math.sqrt(percentage / 100), -2)
        assert last == cfg.SOLVER.MAX_ITER
        assert (round(last * 2 / 3, -2), round(last * 8 / 9, -2)) == cfg.SOLVER.STEPS
        assert cfg.DATASETS.TEST == ("coco_2017_val",)
        assert cfg.MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH < 0
        check_classes(cfg)  # the data sets are registered, with so many classes
    wanted = {p: (f"coco_semi_{p}perc",) for p in PERCENTAGES}
    assert found == {**wanted, 100: ("coco_2017_train",)}


def test_data_of_other_classes_than_the_detectors():
    file = ROOT / "configs" / "semi_supervised" / "promerge_cascade_1perc.yaml"
    cfg = read_config(str(file), ["MODEL.ROI_HEADS.NUM_CLASSES", "1"])
    with pytest.raises(UserError, match=r"coco_semi_1perc .*80.* 1: "):
        check_classes(cfg)


def test_shares_that_are_not_there():
    with pytest.raises(UserError, match=r"cutler/coco-smi/annotations\.zip"):
        check_datasets(["coco_semi_5perc"])


# Learning rate


@pytest.mark.parametrize(
    ("reference", "processes", "wanted"),
    [
        # images, rate, iterations, step, warm-up: 8 GPUs x 2 images, as published
        (0, 1, (16, 0.01, 160_000, 80_000, 1000)),
        (8, 8, (16, 0.01, 160_000, 80_000, 1000)),
        (8, 1, (2, 0.00125, 1_280_000, 640_000, 8000)),  # 1 x 2: an eighth, eight times as long
        (8, 4, (8, 0.005, 320_000, 160_000, 2000)),
        (8, 16, (32, 0.02, 80_000, 40_000, 500)),
    ],
)
def test_the_learning_rate_follows_the_number_of_processes(cascade, reference, processes, wanted):
    cfg = cascade.clone()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = reference
    solver = ProMergeTrainer.auto_scale_workers(cfg, processes).SOLVER
    found = (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.STEPS[0])
    assert (*found, solver.WARMUP_ITERS) == wanted


@pytest.mark.parametrize(
    ("name", "iteration", "factor"),
    [
        # linear from 1/1000 to 1 over 1,000 iterations, then the step
        ("promerge_cascade", 0, 0.001),
        ("promerge_cascade", 500, 0.001 + 0.999 / 2),
        ("promerge_cascade", 1000, 1.0),
        ("promerge_cascade", 79_999, 1.0),
        ("promerge_cascade", 80_000, 0.02),
        ("promerge_cascade", 159_999, 0.02),
        ("promerge_mask_rcnn", 80_000, 0.1),
        ("promerge_cascade_r1", 1000, 1.0),
        ("promerge_cascade_r1", 79_999, 1.0),
    ],
)
def test_the_learning_rate_at(name, iteration, factor):
    cfg = read_config(str(ROOT / "configs" / f"{name}.yaml"), [])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    multiplier = ProMergeTrainer.build_lr_scheduler(cfg, optimizer)._multiplier
    assert multiplier(iteration / cfg.SOLVER.MAX_ITER) == pytest.approx(factor, rel=1e-6)


def test_the_schedule_is_two_epochs_of_imagenet(cascade):
    images = cascade.SOLVER.MAX_ITER * cascade.SOLVER.IMS_PER_BATCH
    assert images == 2_560_000
    assert images / 1_281_167 == pytest.approx(2, abs=0.01)


def test_the_keys_we_add_do_nothing_unless_asked():
    cfg = get_cfg()
    add_promerge_config(cfg)
    assert cfg.INPUT.COPY_PASTE.ENABLED is False
    assert cfg.DATASETS.PROMERGE == []
    assert cfg.SOLVER.OPTIMIZER == "SGD"
    assert cfg.MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH < 0
    assert LabelChoice.from_config(cfg) == LabelChoice()
    assert cfg.MODEL.FROZEN_VIT.CACHE_DIR == ""


def test_the_frozen_vit_base_runs_on_a_cpu_as_it_is():
    cfg = read_config(str(ROOT / "configs" / "Base-Frozen-ViT.yaml"), ["MODEL.DEVICE", "cpu"])
    check_device(cfg)  # no SyncBN is left in it
    assert cfg.MODEL.BACKBONE.NAME == "build_frozen_vit_pyramid_backbone"
    assert cfg.MODEL.WEIGHTS == ""
    assert cfg.SOLVER.AMP.ENABLED is False
    assert cfg.SOLVER.OPTIMIZER == "ADAMW"
    assert cfg.TEST.PRECISE_BN.ENABLED is False


def test_the_quickstart_runs_on_a_cpu_as_it_is():
    cfg = read_config(str(ROOT / "configs" / "quickstart.yaml"), [])
    before = cfg.dump()
    check_device(cfg)
    assert cfg.dump() == before
    assert cfg.MODEL.DEVICE == "cpu"
    names = [name for name, _, _ in cfg.DATASETS.PROMERGE]
    assert set(cfg.DATASETS.TRAIN + cfg.DATASETS.TEST) == set(names)


def test_the_cascade_does_not_run_on_a_cpu_as_it_is(cascade):
    cfg = cascade.clone()
    cfg.MODEL.DEVICE = "cpu"
    with pytest.raises(UserError, match=r"MODEL\.FPN\.NORM BN MODEL\.RESNETS\.NORM BN"):
        check_device(cfg)
