"""The same training from a LazyConfig: a Python file instead of YAML.

It has ``model``, ``dataloader`` (``train``, ``test``, ``evaluator``), ``optimizer``,
``lr_multiplier`` and ``train``; ``configs/promerge_cascade.py`` is one.
"""

from __future__ import annotations

import argparse
import os

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.engine import default_setup
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.solver import LRMultiplier
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from promerge_d2.config import add_promerge_config
from promerge_d2.data import register_from_config
from promerge_d2.engine.setup import check_device, check_files
from promerge_d2.engine.trainer import ProMergeTrainer
from promerge_d2.utils.errors import UserError

PARTS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")


class LazyTrainer(ProMergeTrainer):
    """``ProMergeTrainer`` whose builders take a LazyConfig, as ``setup_lazy`` gives it."""

    @classmethod
    def prepare(cls, config: DictConfig) -> tuple[DictConfig, CfgNode]:
        """See ``ProMergeTrainer``."""
        _, cfg = super().prepare(settings_of(config))
        config.train.seed = cfg.SEED
        return config, cfg

    @classmethod
    def build_model(cls, cfg: DictConfig) -> torch.nn.Module:
        """The model, on its device."""
        return instantiate(cfg.model).to(cfg.train.device)

    @classmethod
    def build_optimizer(cls, cfg: DictConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The optimiser of the model's parameters."""
        return instantiate(cfg.optimizer)(model)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: DictConfig, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The learning rate over the run."""
        multiplier = instantiate(cfg.lr_multiplier)
        return LRMultiplier(optimizer, multiplier=multiplier, max_iter=cfg.train.max_iter)

    @classmethod
    def build_train_loader(cls, cfg: DictConfig) -> torch.utils.data.DataLoader:
        """The deterministic loader."""
        return instantiate(cfg.dataloader.train)

    def test(self, cfg: CfgNode, model: torch.nn.Module) -> dict:
        """Evaluate as the LazyConfig says."""
        return test_lazy(self.config, model)


def test_lazy(lazy: DictConfig, model: torch.nn.Module) -> dict:
    """Evaluate a model on the test data."""
    evaluator = instantiate(lazy.dataloader.evaluator)
    results = inference_on_dataset(model, instantiate(lazy.dataloader.test), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results


class ClippedSGD:
    """SGD over detectron2's parameter groups, each tensor's gradient clipped on its own.

    Args:
        max_norm: the largest L2 norm of a tensor's gradient.
        **kwargs: of ``torch.optim.SGD``; ``weight_decay`` is not that of norms, which is 0.
    """

    def __init__(self, max_norm: float, **kwargs) -> None:  # noqa: ANN003
        self.max_norm = max_norm
        self.settings = kwargs

    def __call__(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The optimiser of a model."""
        cfg = get_cfg()
        add_promerge_config(cfg)
        clip = cfg.SOLVER.CLIP_GRADIENTS
        clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "norm", self.max_norm
        params = ProMergeTrainer.optimizer_params(cfg, model, self.settings["lr"])
        sgd = torch.optim.SGD(params, foreach=True, **self.settings)
        return maybe_add_gradient_clipping(cfg, sgd)


def read_lazy(config_file: str, opts: list[str]) -> DictConfig:
    """Read a LazyConfig and apply ``key=value`` overrides.

    Raises:
        UserError: the file is missing or lacks a part, or a key does not exist.
    """
    if not os.path.isfile(config_file):
        raise UserError(f"the config {config_file} does not exist")
    lazy = LazyConfig.load(config_file)
    if missing := [part for part in PARTS if part not in lazy]:
        raise UserError(f"{config_file} has no {', '.join(missing)}; see configs/*.py")
    for option in opts:
        key, equals, _ = option.partition("=")
        if not equals:
            raise UserError(f"options of a Python config are KEY=VALUE, not {option!r}")
        try:
            known = _has(lazy, key)
        except OmegaConfBaseException as error:
            raise UserError(f"{option!r}: {error}") from error
        if not known:
            raise UserError(f"{config_file} has no key {key}")
    return LazyConfig.apply_overrides(lazy, opts)


def settings_of(lazy: DictConfig) -> CfgNode:
    """What the trainer's own part needs to know, as detectron2's configuration."""
    cfg = get_cfg()
    add_promerge_config(cfg)
    train = lazy.train
    cfg.MODEL.DEVICE = train.device
    cfg.MODEL.WEIGHTS = train.init_checkpoint
    cfg.OUTPUT_DIR = train.output_dir
    cfg.SEED = train.seed
    cfg.SOLVER.MAX_ITER = train.max_iter
    cfg.SOLVER.AMP.ENABLED = train.amp.enabled
    cfg.SOLVER.CHECKPOINT_PERIOD = train.checkpoint_period
    cfg.TEST.EVAL_PERIOD = train.eval_period
    cfg.TEST.PRECISE_BN.ENABLED = train.precise_bn.enabled
    cfg.TEST.PRECISE_BN.NUM_ITER = train.precise_bn.num_iter
    cfg.DATASETS.PROMERGE = [list(entry) for entry in train.data_sets]
    cfg.DATASETS.TRAIN = tuple(lazy.dataloader.train.names)
    cfg.DATASETS.TEST = tuple(lazy.dataloader.test.dataset.names)
    return cfg


def setup_lazy(args: argparse.Namespace) -> DictConfig:
    """The LazyConfig of a run, checked; the counterpart of ``setup``.

    Raises:
        UserError: see ``read_lazy``; or data, weights or settings that cannot be used here.
    """
    lazy = read_lazy(args.config_file, args.opts)
    cfg = settings_of(lazy)
    if cfg.MODEL.DEVICE.startswith("cpu") and lazy.train.norm == "SyncBN":
        raise UserError("SyncBN needs GPUs; on a CPU add: train.norm=BN")
    check_device(cfg)
    lazy.train.amp.enabled = cfg.SOLVER.AMP.ENABLED
    register_from_config(cfg)
    last = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    check_files(cfg, args.eval_only, resumed=args.resume and os.path.isfile(last))
    default_setup(lazy, args)
    setup_logger(cfg.OUTPUT_DIR, name="promerge_d2")
    return lazy


def _has(lazy: DictConfig, key: str) -> bool:
    """Whether a dotted key exists; numbers are places in lists."""
    node = lazy
    for part in key.split("."):
        place = int(part) if part.isdigit() else part
        if not (place < len(node) if isinstance(place, int) else part in node):
            return False
        node = node[place]
    return True
