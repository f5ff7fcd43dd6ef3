import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from omegaconf import DictConfig, ListConfig

from promerge_d2.data import register_promerge_instances
from promerge_d2.data.mapper import LabelMapper
from promerge_d2.engine import ProMergeTrainer
from promerge_d2.engine.lazy import LazyTrainer, read_lazy, settings_of
from promerge_d2.engine.setup import check_schedule, read_config
from promerge_d2.utils.errors import UserError
from tests.helpers import ROOT, coco_json, square

NAMES = ["promerge_cascade", "promerge_mask_rcnn"]


@pytest.fixture(scope="module", params=NAMES)
def twins(request):
    """A LazyConfig and the YAML that it is the twin of, for the CPU."""
    folder = ROOT / "configs"
    lazy = read_lazy(str(folder / f"{request.param}.py"), ["train.device=cpu"])
    return lazy, read_config(str(folder / f"{request.param}.yaml"), ["MODEL.DEVICE", "cpu"])


def plain(value):
    """A setting as numbers and names that can be compared; None for what is no setting."""
    if isinstance(value, Box2BoxTransform):
        return tuple(value.weights)
    if isinstance(value, Matcher):
        return value.thresholds, value.labels, value.allow_low_quality_matches
    if isinstance(value, list | tuple | ListConfig):
        return tuple(map(plain, value))
    if isinstance(value, dict | DictConfig):
        return {key: plain(item) for key, item in value.items() if item != 1.0}  # a loss's weight
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return type(value).__name__


def description(model):
    """Type and settings of every module, and the shape of every tensor."""
    modules = {
        name: (type(module), {k: plain(v) for k, v in vars(module).items() if k[0] != "_"})
        for name, module in model.named_modules()
    }
    return modules, {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_the_models_are_the_same(twins):
    lazy, cfg = twins
    found, wanted = (
        description(build)
        for build in (LazyTrainer.build_model(lazy), ProMergeTrainer.build_model(cfg))
    )
    assert found[1] == wanted[1]
    assert found[0].keys() == wanted[0].keys()
    for name, module in wanted[0].items():
        assert found[0][name] == module, name


def test_the_solvers_are_the_same(twins):
    lazy, cfg = twins
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    found, wanted = (
        LazyTrainer.build_optimizer(lazy, model),
        ProMergeTrainer.build_optimizer(cfg, model),
    )
    assert found.defaults == wanted.defaults
    assert [g["weight_decay"] for g in found.param_groups] == [
        g["weight_decay"] for g in wanted.param_groups
    ]
    for optimizer in (found, wanted):  # each tensor's gradient is clipped
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 100.0)
        optimizer.step()
        assert all(p.grad.norm() == pytest.approx(1, abs=1e-4) for p in model.parameters())
    schedules = [
        LazyTrainer.build_lr_scheduler(lazy, found)._multiplier,
        ProMergeTrainer.build_lr_scheduler(cfg, wanted)._multiplier,
    ]
    for where in (0, 0.001, 1000 / 160_000, 0.4999, 0.5, 0.9999):
        assert schedules[0](where) == pytest.approx(schedules[1](where), rel=1e-9)
    settings = settings_of(lazy)
    for node, key in [
        *[("SOLVER", key) for key in ("MAX_ITER", "CHECKPOINT_PERIOD")],
        *[("MODEL", "WEIGHTS"), ("TEST", "EVAL_PERIOD")],
    ]:
        assert settings[node][key] == cfg[node][key], key
    assert settings.OUTPUT_DIR == cfg.OUTPUT_DIR
    assert settings.SOLVER.AMP.ENABLED == cfg.SOLVER.AMP.ENABLED
    assert settings.TEST.PRECISE_BN == cfg.TEST.PRECISE_BN
    assert settings.DATASETS.TRAIN == cfg.DATASETS.TRAIN
    assert settings.DATASETS.TEST == cfg.DATASETS.TEST


def mapping(mapper):
    """What a mapper does."""
    settings = {k: plain(v) for k, v in vars(mapper).items() if k != "augmentations"}
    steps = mapper.augmentations.augs
    return settings, [(type(step), {k: plain(v) for k, v in vars(step).items()}) for step in steps]


def test_the_data_are_the_same(twins, tmp_path):
    lazy, cfg = twins[0].copy(), twins[1].clone()
    masks = [square(20, 30, 1, 1, 9, 9)]
    file = coco_json(tmp_path / "labels.json", [(f"{n}.png", 20, 30, masks) for n in range(16)])
    register_promerge_instances("twins_test", file, tmp_path)
    try:
        lazy.dataloader.train.names = ["twins_test"]
        lazy.train.seed = 3
        cfg.DATASETS.TRAIN, cfg.SEED = ("twins_test",), 3
        found, wanted = (
            LazyTrainer.build_train_loader(lazy),
            ProMergeTrainer.build_train_loader(cfg),
        )
    finally:
        DatasetCatalog.remove("twins_test")
        MetadataCatalog.remove("twins_test")
    assert found.num_workers == wanted.num_workers
    ours, theirs = found.batch_sampler, wanted.batch_sampler
    assert (ours.batch, ours.seed, ours.size) == (theirs.batch, theirs.seed, theirs.size)
    assert np.array_equal(ours.portrait, theirs.portrait)
    pasting = [loader.dataset.mapper for loader in (found, wanted)]
    assert pasting[0].rate == pasting[1].rate
    assert pasting[0].ratios == pasting[1].ratios
    assert mapping(pasting[0].mapper) == mapping(pasting[1].mapper)
    assert pasting[0].mapper.choice == pasting[1].mapper.choice
    tests = instantiate(lazy.dataloader.test.mapper), LabelMapper(cfg, False)
    assert mapping(tests[0])[1] == mapping(tests[1])[1]
    assert tests[0].image_format == tests[1].image_format


@pytest.mark.parametrize("length", [1, 20, 500, 2000, 80_000, 80_001, 320_000])
def test_the_schedules_are_the_same_at_any_length(twins, length):
    lazy, cfg = twins[0].copy(), twins[1].clone()
    lazy.train.max_iter = cfg.SOLVER.MAX_ITER = length
    check_schedule(cfg)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    ours, theirs = (
        LazyTrainer.build_lr_scheduler(lazy, sgd)._multiplier,
        ProMergeTrainer.build_lr_scheduler(cfg, sgd)._multiplier,
    )
    for iteration in {0, 1, 10, 999, 1000, 1001, 79_999, 80_000, 80_001, length - 1}:
        if iteration < length:
            where = iteration / length
            assert ours(where) == pytest.approx(theirs(where), rel=1e-9), iteration
    if length > 1000:
        assert ours(500 / length) == pytest.approx(0.5, abs=1e-3)  # of 1,000 iterations of warm-up


# Reading


def test_overrides():
    file = str(ROOT / "configs" / "promerge_cascade.py")
    lazy = read_lazy(
        file, ["train.max_iter=5", "model.roi_heads.box_predictors.1.iou_threshold=-1"]
    )
    assert lazy.train.max_iter == 5
    assert lazy.lr_multiplier.max_iter == 5
    assert [p.iou_threshold for p in lazy.model.roi_heads.box_predictors] == [0.01, -1, 0.01]


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["train.max_itr=5"], r"has no key train\.max_itr$"),
        (["model.roi_heads.box_predictors.3.iou_threshold=1"], r"has no key .*predictors\.3"),
        (["SOLVER.MAX_ITER", "5"], r"are KEY=VALUE, not 'SOLVER\.MAX_ITER'$"),
    ],
)
def test_bad_overrides(opts, message):
    with pytest.raises(UserError, match=message):
        read_lazy(str(ROOT / "configs" / "promerge_cascade.py"), opts)


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match=r"gone\.py"):
        read_lazy("gone.py", [])
    (tmp_path / "c.py").write_text("train = dict(max_iter=1)\n")
    with pytest.raises(UserError, match=r"c\.py.*model, dataloader, optimizer, lr_multiplier"):
        read_lazy(str(tmp_path / "c.py"), [])
