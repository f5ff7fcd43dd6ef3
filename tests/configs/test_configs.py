import pytest
from detectron2.config import get_cfg

from promerge_d2 import add_promerge_config
from promerge_d2.data.datasets import BUILTINS
from promerge_d2.engine.setup import check_device, read_config
from promerge_d2.features import BACKBONES
from promerge_d2.utils.errors import UserError
from promerge_d2.zero_shot.benchmarks import BENCHMARKS
from tests.helpers import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

# promerge.md B1, column "cascade (main)"
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


def value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_merges(file):
    cfg = read_config(str(file), [])
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 1
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


@pytest.mark.parametrize("key", CASCADE)
def test_the_cascade_is_the_published_recipe(cascade, key):
    found, wanted = value(cascade, key), CASCADE[key]
    assert found == wanted
    assert type(found) is type(wanted)


def test_the_cascade_names_known_data(cascade):
    assert set(cascade.DATASETS.TRAIN) <= set(BUILTINS)
    assert set(cascade.DATASETS.TEST) <= set(BENCHMARKS)
    assert cascade.MODEL.WEIGHTS == "weights/dino_resnet50_d2.pkl"


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
