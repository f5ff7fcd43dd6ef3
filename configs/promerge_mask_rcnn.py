# The LazyConfig twin of promerge_mask_rcnn.yaml: a plain Mask R-CNN, without mixed precision.
from promerge_d2.modeling import DropLossOutputLayers, DropLossStandardROIHeads

from .base_rcnn_fpn import rcnn_fpn
from .promerge_cascade import dataloader, lr_multiplier, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model = rcnn_fpn("mask_rcnn_fpn")
model.roi_heads._target_ = DropLossStandardROIHeads
model.roi_heads.box_predictor.update(
    _target_=DropLossOutputLayers, iou_threshold=0.01, test_score_thresh=0.0
)

train.output_dir = "output/promerge_mask_rcnn"
train.amp.enabled = False
lr_multiplier.gamma = 0.1
