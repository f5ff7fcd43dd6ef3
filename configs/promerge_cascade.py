# The LazyConfig twin of promerge_cascade.yaml: ProMerge+, Cascade Mask R-CNN R50-FPN.
from detectron2.config import LazyCall as L

from promerge_d2.engine.lazy import multistep_schedule
from promerge_d2.modeling import DropLossCascadeROIHeads, DropLossOutputLayers

from .base_rcnn_fpn import dataloader, optimizer, rcnn_fpn, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model = rcnn_fpn("cascade_rcnn")
model.roi_heads._target_ = DropLossCascadeROIHeads
for predictor in model.roi_heads.box_predictors:
    predictor.update(_target_=DropLossOutputLayers, iou_threshold=0.01, test_score_thresh=0.0)

train["output_dir"] = "output/promerge_cascade"
# 8 GPUs x 2 images: 160,000 iterations x 16 images = 2.56 M images, 2 epochs of ImageNet-1K
lr_multiplier = L(multistep_schedule)(
    steps=[80000],
    gamma=0.02,
    max_iter="${train.max_iter}",
    warmup_iters=1000,
    warmup_factor=0.001,
)
