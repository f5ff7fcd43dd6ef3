import itertools

import pytest

from promerge_d2.engine.setup import check_device, read_config
from promerge_d2.features import get_backbone
from promerge_d2.modeling.frozen_vit import check_cacheable
from promerge_d2.modeling.relations import count_relations
from tests.helpers import ROOT


def read(name):
    return read_config(str(ROOT / "configs" / f"{name}.yaml"), [])


@pytest.fixture(scope="module")
def small():
    return read("promerge_cascade_vit_small")


@pytest.fixture(scope="module")
def large():
    return read("promerge_cascade_vit")


def test_the_small_one_runs_on_a_cpu_as_it_is(small):
    before = small.dump()
    check_device(small)
    assert small.dump() == before
    assert small.MODEL.DEVICE == "cpu"
    assert {name for name, _, _ in small.DATASETS.PROMERGE} == set(small.DATASETS.TRAIN)


def test_the_small_one_caches_two_views_an_image(small):
    check_cacheable(small)
    vit = small.MODEL.FROZEN_VIT
    backbone = get_backbone(vit.BACKBONE)
    assert len(small.INPUT.MIN_SIZE_TRAIN) == 1
    assert small.INPUT.RANDOM_FLIP == "horizontal"
    assert small.INPUT.MAX_SIZE_TRAIN == small.INPUT.MAX_SIZE_TEST == vit.SQUARE_PAD == 17 * 32
    assert vit.CACHE_PRECISION == "fp16"
    blocks = 1 + len(vit.LAYERS)
    channels = backbone.width * blocks + count_relations(blocks)
    assert (vit.SQUARE_PAD // 16) ** 2 * channels * 2 == pytest.approx(3.84e6, rel=0.01)


@pytest.mark.parametrize("name", ["quickstart", "promerge_cascade_vit_small"])
def test_the_small_ones_boxes_follow_adamws_steps(name):
    cfg = read(name)
    weights = cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
    assert cfg.SOLVER.OPTIMIZER == "ADAMW"
    assert len(weights) == len(cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS)
    assert max(max(stage) for stage in weights) <= 4  # detectron2's are 10 to 30
    assert all(x == y == 2 * w == 2 * h for x, y, w, h in weights)


def test_the_small_ones_anchors_leave_no_gap(small):
    sizes = list(itertools.chain.from_iterable(small.MODEL.ANCHOR_GENERATOR.SIZES))
    assert sizes[0] <= 32
    assert sizes[-1] >= 0.85 * small.INPUT.MAX_SIZE_TRAIN
    ratios = [after / before for before, after in itertools.pairwise(sizes)]
    assert all(1.75 < ratio < 1.9 for ratio in ratios)
    assert len(small.MODEL.RPN.IN_FEATURES) == len(small.MODEL.ANCHOR_GENERATOR.SIZES)


def test_the_small_ones_schedule(small):
    images = small.SOLVER.MAX_ITER * small.SOLVER.IMS_PER_BATCH
    assert images == 8000
    assert images / 530 == pytest.approx(15, abs=0.5)


def test_the_large_ones_schedule(large):
    images = large.SOLVER.MAX_ITER * large.SOLVER.IMS_PER_BATCH
    recipe = read("promerge_cascade").SOLVER
    assert images == 640_000
    assert images / 1_281_167 == pytest.approx(1 / 2, abs=0.01)
    assert images / (recipe.MAX_ITER * recipe.IMS_PER_BATCH) == 1 / 4


def test_the_large_one_is_unsupervised_and_pastes(large):
    assert get_backbone(large.MODEL.FROZEN_VIT.BACKBONE).unsupervised
    assert large.INPUT.COPY_PASTE.ENABLED
    assert not large.MODEL.FROZEN_VIT.CACHE_DIR


@pytest.mark.parametrize("name", ["promerge_cascade_vit", "promerge_cascade_vit_small"])
def test_pixels_are_those_of_the_vit_and_norms_have_whole_groups(name):
    cfg = read(name)
    backbone = get_backbone(cfg.MODEL.FROZEN_VIT.BACKBONE)
    assert tuple(cfg.MODEL.PIXEL_MEAN) == backbone.pixel_mean
    assert tuple(cfg.MODEL.PIXEL_STD) == backbone.pixel_std
    assert cfg.MODEL.FPN.NORM == "GN"
    assert cfg.MODEL.FPN.OUT_CHANNELS % 32 == 0
