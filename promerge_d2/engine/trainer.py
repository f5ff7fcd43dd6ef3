"""detectron2's default trainer with our data, evaluation and optimiser; runs can be resumed."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import weakref
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules
from torch.nn.parallel import DistributedDataParallel

from promerge_d2.data import CopyPasteMapper
from promerge_d2.data.loader import (
    ExampleLoader,
    MappedDraws,
    TrainLoader,
    build_loader,
    build_test_loader,
    build_train_loader,
)
from promerge_d2.data.mapper import LabelMapper
from promerge_d2.engine.setup import building, reading_checkpoint
from promerge_d2.evaluation.evaluator import ClassAgnosticEvaluator
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path
from promerge_d2.utils.seeding import STEP, seed_torch


class ProMergeTrainer(DefaultTrainer):
    """Train on pseudo-labels and evaluate without classes.

    Every draw of a step follows from the seed and the iteration, so a run that was stopped at any
    moment and resumed has the losses of one that was not: bit for bit on a CPU.

    Args:
        cfg: the configuration. With a negative ``SEED`` one is drawn, which checkpoints keep.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super(DefaultTrainer, self).__init__()  # DefaultTrainer's own knows DDP on GPUs only
        self.config, self.cfg = config, cfg = self.prepare(cfg)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER

        with building("the model"):
            model = self.build_model(config)
        with building("the optimiser"):
            optimizer = self.build_optimizer(config, model)
        with building("the data loader"):
            loader = self.build_train_loader(config)
        trainer = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer(distribute(model), loader, optimizer)
        with building("the schedule"):
            self.scheduler = self.build_lr_scheduler(config, optimizer)
        self.checkpointer = Checkpointer(
            self._trainer.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.register_hooks(self.build_hooks())

    @classmethod
    def prepare(cls, config: CfgNode) -> tuple[CfgNode, CfgNode]:
        """Fit a configuration to the number of processes, and draw a seed if it has none.

        Returns:
            What the builders of model, optimiser, schedule and loader take; and what the trainer
            itself goes by. Here they are the same.
        """
        with building("SOLVER.REFERENCE_WORLD_SIZE's schedule"):
            cfg = cls.auto_scale_workers(config, comm.get_world_size()).clone()
        cfg.defrost()
        if cfg.SEED < 0:
            cfg.SEED = comm.shared_random_seed()
        cfg.freeze()
        return cfg, cfg

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> torch.utils.data.DataLoader:
        """Build the deterministic loader, with copy-paste if ``INPUT.COPY_PASTE.ENABLED``.

        Raises:
            UserError: a sampler that it does not have, or no image to train on.
        """
        if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
            raise UserError(
                "DATALOADER.SAMPLER_TRAIN has to be TrainingSampler (every image once an epoch), "
                f"not {cfg.DATALOADER.SAMPLER_TRAIN}: a resumed run must find its order again"
            )
        paste = cfg.INPUT.COPY_PASTE
        ratios = {name: paste[name.upper()] for name in ("rate", "min_ratio", "max_ratio")}
        return build_train_loader(
            cfg.DATASETS.TRAIN,
            LabelMapper(cfg, True),
            batch=cfg.SOLVER.IMS_PER_BATCH,
            seed=cfg.SEED,
            paste=ratios if paste.ENABLED else None,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            group_by_orientation=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> ExampleLoader:
        """Build the loader of a data set to evaluate on, with images read as they are labelled."""
        return build_test_loader(
            [dataset_name], LabelMapper(cfg, False), cfg.DATALOADER.NUM_WORKERS
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Build the class-agnostic evaluator, or COCO's for a data set with COCO's classes.

        Predictions are kept under ``inference/NAME``.
        """
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        if MetadataCatalog.get(dataset_name).get("evaluator_type") == "coco":
            return COCOEvaluator(dataset_name, output_dir=folder)
        return ClassAgnosticEvaluator(
            dataset_name, output_dir=folder, boxes_from_masks=cfg.TEST.BOXES_FROM_MASKS
        )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Build SGD as detectron2 does, or AdamW over the same parameter groups.

        Raises:
            UserError: another ``SOLVER.OPTIMIZER``.
        """
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "ADAMW":
            raise UserError(f"SOLVER.OPTIMIZER is SGD or ADAMW, not {cfg.SOLVER.OPTIMIZER}")
        params = cls.optimizer_params(cfg, model, cfg.SOLVER.BASE_LR)
        adamw = torch.optim.AdamW(
            params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )
        return maybe_add_gradient_clipping(cfg, adamw)

    @staticmethod
    def optimizer_params(cfg: CfgNode, model: torch.nn.Module, base_lr: float) -> list[dict]:
        """Return the parameter groups of detectron2's own optimiser."""
        return get_default_optimizer_params(
            model,
            base_lr=base_lr,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )

    def build_hooks(self) -> list[HookBase | None]:
        """Build detectron2's hooks; PreciseBN sees images without pasting (docs/recipe.md)."""
        cfg = self.cfg
        self.cfg = cfg.clone()
        self.cfg.defrost()
        self.cfg.TEST.PRECISE_BN.ENABLED = False
        try:
            found = super().build_hooks()
        finally:
            self.cfg = cfg
        precise = cfg.TEST.PRECISE_BN
        if precise.ENABLED and get_bn_modules(self.model):
            found[2] = PreciseBN(
                cfg.TEST.EVAL_PERIOD, self.model, self.data_loader, precise.NUM_ITER
            )
        return found

    def resume_or_load(self, resume: bool = True) -> None:
        """Load ``MODEL.WEIGHTS``, or go on from the last checkpoint if there is one.

        Args:
            resume: whether to go on.

        Raises:
            UserError: the checkpoint cannot be read, or is of another detector.
        """
        file = self.cfg.MODEL.WEIGHTS
        if resume and self.checkpointer.has_checkpoint():
            file = self.checkpointer.get_checkpoint_file()
        with reading_checkpoint(file):
            super().resume_or_load(resume)

    def train(self) -> Any:
        """Train to the end.

        Returns:
            The figures of the last evaluation, if there was one.

        Raises:
            UserError: an image, or the configuration, does not go; it is logged in one line.
        """
        logging.getLogger(SimpleTrainer.__module__).addFilter(_shorten)
        return super().train()

    def before_train(self) -> None:
        """Have the data start where the run does."""
        self.data_loader.batch_sampler.start = self.start_iter
        super().before_train()

    def run_step(self) -> None:
        """Run an iteration; what the model draws follows from seed, iteration and process.

        Raises:
            UserError: the first fails, as it does where the shapes of the parts do not match.
        """
        seed_torch(STEP, self.seed, self.iter, comm.get_rank())
        first = self.iter == self.start_iter
        with building("the first step") if first else contextlib.nullcontext():
            super().run_step()

    @property
    def seed(self) -> int:
        """The seed of everything that is drawn."""
        return self.data_loader.batch_sampler.seed

    def state_dict(self) -> dict:
        """Return detectron2's state of a run, and the seed."""
        return {**super().state_dict(), "seed": self.seed}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take up a run, with its seed."""
        super().load_state_dict(state_dict)
        self.data_loader.batch_sampler.seed = state_dict.get("seed", self.seed)


def _shorten(record: logging.LogRecord) -> bool:
    """Leave the traceback out of what detectron2 logs of an error that the user can mend."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UserError):
        record.msg, record.args, record.exc_info = f"training stopped: {error}", (), None
    return True


class Checkpointer(DetectionCheckpointer):
    """detectron2's, except that a process that is killed leaves the name of a whole checkpoint."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note the checkpoint to resume from."""
        with atomic_path(os.path.join(self.save_dir, "last_checkpoint")) as part:
            part.write_text(last_filename_basename, encoding="utf-8")


class PreciseBN(hooks.PreciseBN):
    """detectron2's, on the same images whenever it runs, so that a resumed run sees them too.

    Args:
        period: iterations between two runs; 0: only at the end.
        model: see detectron2's.
        loader: that of training; objects that it pastes are left out.
        num_iter: batches to look at.
    """

    def __init__(
        self,
        period: int,
        model: torch.nn.Module,
        loader: TrainLoader,
        num_iter: int,
    ) -> None:
        stream = copy.copy(loader.batch_sampler)
        mapper = loader.dataset.mapper
        plain = mapper.mapper if isinstance(mapper, CopyPasteMapper) else mapper
        dataset = MappedDraws(loader.dataset.dicts, plain)
        super().__init__(period, model, build_loader(dataset, stream, loader.num_workers), num_iter)

    def update_stats(self) -> None:
        """Compute the statistics anew; the loader's processes live no longer than this."""
        if self._disabled:
            return
        self._data_loader.batch_sampler.seed = self.trainer.seed
        seed_torch(STEP, self.trainer.seed, self.trainer.iter, comm.get_rank())
        super().update_stats()
        self._data_iter = None


def distribute(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model, in DDP if there are several processes, on GPUs or CPUs."""
    if comm.get_world_size() == 1:
        return model
    on_cpu = next(model.parameters()).device.type == "cpu"
    devices = None if on_cpu else [comm.get_local_rank()]
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)
