"""detectron2's default trainer with our data, evaluation and optimiser."""

from __future__ import annotations

import os

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    DatasetMapper,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping

from promerge_d2.data import CopyPasteMapper
from promerge_d2.evaluation import ClassAgnosticEvaluator
from promerge_d2.utils.errors import UserError


class ProMergeTrainer(DefaultTrainer):
    """Train on pseudo-labels and evaluate without classes; everything else is detectron2's."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> torch.utils.data.DataLoader:
        """detectron2's loader, with copy-paste if ``INPUT.COPY_PASTE.ENABLED``."""
        mapper = DatasetMapper(cfg, True)
        paste = cfg.INPUT.COPY_PASTE
        if not paste.ENABLED:
            return build_detection_train_loader(cfg, mapper=mapper)
        dicts = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
        dataset = DatasetFromList(dicts, copy=False)  # one serialised copy for both uses
        mapper = CopyPasteMapper(mapper, dataset, paste.RATE, paste.MIN_RATIO, paste.MAX_RATIO)
        return build_detection_train_loader(cfg, mapper=mapper, dataset=dataset)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The class-agnostic evaluator; predictions are kept under ``inference/NAME``."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return ClassAgnosticEvaluator(
            dataset_name, output_dir=folder, boxes_from_masks=cfg.TEST.BOXES_FROM_MASKS
        )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """SGD as detectron2 builds it, or AdamW over the same parameter groups.

        Raises:
            UserError: another ``SOLVER.OPTIMIZER``.
        """
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "ADAMW":
            raise UserError(f"SOLVER.OPTIMIZER is SGD or ADAMW, not {cfg.SOLVER.OPTIMIZER}")
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        adamw = torch.optim.AdamW(
            params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )
        return maybe_add_gradient_clipping(cfg, adamw)

    def build_hooks(self) -> list[HookBase | None]:
        """detectron2's hooks; PreciseBN sees images without pasting (promerge.md B1)."""
        cfg = self.cfg
        self.cfg = cfg.clone()
        self.cfg.defrost()
        self.cfg.INPUT.COPY_PASTE.ENABLED = False
        try:
            return super().build_hooks()
        finally:
            self.cfg = cfg
