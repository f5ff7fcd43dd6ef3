"""The same training from a LazyConfig: a Python file instead of YAML.

It has ``model``, ``dataloader`` (``train``, ``test``, ``evaluator``), ``optimizer``,
``lr_multiplier`` and ``train``; ``configs/promerge_cascade.py`` is one.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.engine import default_setup
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from promerge_d2.config import add_promerge_config
from promerge_d2.data import register_from_config
from promerge_d2.engine.setup import (
    check_device,
    check_files,
    check_schedule,
    reached_steps,
    reading_python,
)
from promerge_d2.engine.trainer import ProMergeTrainer
from promerge_d2.evaluation.evaluator import ClassAgnosticEvaluator
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import make_folder

PARTS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
_GONE = object()

# detectron2's key, and where a LazyConfig has it
SETTINGS = {
    "MODEL.DEVICE": "train.device",
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "OUTPUT_DIR": "train.output_dir",
    "SEED": "train.seed",
    "SOLVER.MAX_ITER": "train.max_iter",
    "SOLVER.AMP.ENABLED": "train.amp.enabled",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpoint_period",
    "TEST.EVAL_PERIOD": "train.eval_period",
    "TEST.PRECISE_BN.ENABLED": "train.precise_bn.enabled",
    "TEST.PRECISE_BN.NUM_ITER": "train.precise_bn.num_iter",
    "DATASETS.PROMERGE": "train.data_sets",
    "DATASETS.TRAIN": "dataloader.train.names",
    "DATASETS.TEST": "dataloader.test.names",
}


class LazyTrainer(ProMergeTrainer):
    """``ProMergeTrainer`` whose builders take a LazyConfig, as ``setup_lazy`` gives it."""

    @classmethod
    def prepare(cls, config: DictConfig) -> tuple[DictConfig, CfgNode]:
        """Fit the LazyConfig to this run, as ``ProMergeTrainer`` fits a CfgNode."""
        _, cfg = super().prepare(settings_of(config))
        config.train.seed = cfg.SEED
        return config, cfg

    @classmethod
    def build_model(cls, cfg: DictConfig) -> torch.nn.Module:
        """Build the model on its device."""
        return instantiate(cfg.model).to(cfg.train.device)

    @classmethod
    def build_optimizer(cls, cfg: DictConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Build the optimiser of the model's parameters."""
        return instantiate(cfg.optimizer)(model)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: DictConfig, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Build the schedule of the learning rate."""
        multiplier = instantiate(cfg.lr_multiplier)
        return LRMultiplier(optimizer, multiplier=multiplier, max_iter=cfg.train.max_iter)

    @classmethod
    def build_train_loader(cls, cfg: DictConfig) -> torch.utils.data.DataLoader:
        """Build the deterministic loader."""
        return instantiate(cfg.dataloader.train)

    def test(self, cfg: CfgNode, model: torch.nn.Module) -> dict:
        """Evaluate as the LazyConfig says."""
        return test_lazy(self.config, model)


def test_lazy(lazy: DictConfig, model: torch.nn.Module) -> dict:
    """Evaluate a model on the test data, if there are any.

    Returns:
        Figures by name, by kind (``bbox``, ``segm``).

    Raises:
        UserError: there are several data sets, which one evaluator cannot tell apart.
    """
    names = list(lazy.dataloader.test.names)
    if not names:
        return {}
    if len(names) > 1:
        raise UserError(
            f"dataloader.test.names is {names}; a Python config evaluates on one data set"
        )
    evaluator = instantiate(lazy.dataloader.evaluator)
    results = inference_on_dataset(model, instantiate(lazy.dataloader.test), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results


def evaluator_of(names: Sequence[str], output_dir: str) -> ClassAgnosticEvaluator:
    """Build the evaluator of the one data set of ``dataloader.test``.

    Args:
        names: of that data set alone.
        output_dir: where detections are written.
    """
    return ClassAgnosticEvaluator(names[0], output_dir=output_dir)


def multistep_schedule(
    steps: Sequence[int],
    gamma: float,
    max_iter: int,
    warmup_iters: int,
    warmup_factor: float,
) -> WarmupParamScheduler:
    """Build the schedule that detectron2 builds from ``SOLVER``: linear warm-up, then steps.

    Args:
        steps: iterations at which the rate is multiplied by ``gamma``; those from ``max_iter`` on
            are left out.
        gamma: see ``steps``.
        max_iter: iterations in all, at least 1.
        warmup_iters: iterations of the warm-up, however long the run.
        warmup_factor: of the first iteration's rate.

    Returns:
        A multiplier of the base learning rate, over the share of the run that is done.
    """
    kept = reached_steps(steps, max_iter)
    values = [gamma**number for number in range(len(kept) + 1)]
    return WarmupParamScheduler(
        MultiStepParamScheduler(values, milestones=kept, num_updates=max_iter),
        warmup_factor,
        min(warmup_iters / max_iter, 1.0),
        "linear",
    )


class ClippedSGD:
    """SGD over detectron2's parameter groups, each tensor's gradient clipped on its own.

    Args:
        max_norm: the largest L2 norm of a tensor's gradient.
        **kwargs: of ``torch.optim.SGD``; ``weight_decay`` is not that of norms, which is 0.
    """

    def __init__(self, max_norm: float, **kwargs: Any) -> None:
        self.max_norm = max_norm
        self.settings = kwargs

    def __call__(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Build the optimiser of a model."""
        cfg = get_cfg()
        add_promerge_config(cfg)
        clip = cfg.SOLVER.CLIP_GRADIENTS
        clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "norm", self.max_norm
        params = ProMergeTrainer.optimizer_params(cfg, model, self.settings["lr"])
        sgd = torch.optim.SGD(params, foreach=True, **self.settings)
        return maybe_add_gradient_clipping(cfg, sgd)


def read_lazy(config_file: str, opts: list[str]) -> DictConfig:
    """Read a LazyConfig and apply ``key=value`` overrides.

    Args:
        config_file: a Python file with the parts that ``PARTS`` names.
        opts: overrides of keys that it has.

    Raises:
        UserError: the file is missing, does not run or lacks a part, or a key does not exist.
    """
    if not os.path.isfile(config_file):
        raise UserError(f"the config {config_file} does not exist")
    with reading_python(config_file):
        lazy = LazyConfig.load(config_file)
    if missing := [part for part in PARTS if part not in lazy]:
        raise UserError(f"{config_file} has no {', '.join(missing)}; see configs/*.py")
    for option in opts:
        key, equals, _ = option.partition("=")
        if not equals:
            raise UserError(f"options of a Python config are KEY=VALUE, not {option!r}")
        try:
            known = OmegaConf.select(lazy, key, default=_GONE) is not _GONE
        except OmegaConfBaseException as error:
            raise UserError(f"{option!r}: {error}") from error
        if not known:
            raise UserError(f"{config_file} has no key {key}")
    with reading_python(f"{config_file} with {' '.join(opts)}"):
        return LazyConfig.apply_overrides(lazy, opts)


def settings_of(lazy: DictConfig) -> CfgNode:
    """Return what the trainer's own part needs to know, as detectron2's configuration.

    Raises:
        UserError: a setting that is missing or has another type, named.
    """
    cfg = get_cfg()
    add_promerge_config(cfg)
    cfg.SOLVER.STEPS = ()  # the LazyConfig builds its own schedule
    for key, name in SETTINGS.items():
        value = OmegaConf.select(lazy, name)
        if value is None:
            raise UserError(f"{name} has no value")
        if isinstance(value, ListConfig):
            value = OmegaConf.to_container(value)
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, AssertionError) as error:
            raise UserError(f"{name} is {value!r}: {error}") from error
    return cfg


def setup_lazy(args: argparse.Namespace) -> DictConfig:
    """Return the LazyConfig of a run, checked; the counterpart of ``setup``.

    Raises:
        UserError: as ``setup``.
    """
    lazy = read_lazy(args.config_file, args.opts)
    cfg = settings_of(lazy)
    if cfg.MODEL.DEVICE.startswith("cpu") and lazy.train.norm == "SyncBN":
        raise UserError("SyncBN needs GPUs; on a CPU add: train.norm=BN")
    check_device(cfg)
    if not args.eval_only:
        check_schedule(cfg)
    make_folder(cfg.OUTPUT_DIR or ".")
    lazy.train.amp.enabled = cfg.SOLVER.AMP.ENABLED
    register_from_config(cfg)
    check_files(cfg, args.eval_only, args.resume)
    default_setup(lazy, args)
    setup_logger(cfg.OUTPUT_DIR, name="promerge_d2")
    return lazy
