"""DropLoss: no punishment for boxes where no pseudo-label is (CutLER; promerge.md B2).

Shape letters: R proposals of all images, T targets of one image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage


class DropLossOutputLayers(FastRCNNOutputLayers):
    """A box predictor whose classification loss leaves out proposals far from every target.

    A proposal's weight is 0 when its *predicted* box of this stage has an IoU of at most
    ``iou_threshold`` with every target of its image, else 1, without gradient. The loss is the
    weighted softmax cross-entropy summed over proposals and divided by *all* of them, dropped ones
    included. Box regression is untouched. An image without targets keeps the ordinary loss.

    Args:
        input_shape: of the box head's output.
        iou_threshold: in [0, 1]; negative drops nothing.
        **kwargs: of ``FastRCNNOutputLayers``.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, iou_threshold: float, **kwargs) -> None:  # noqa: ANN003
        super().__init__(input_shape, **kwargs)
        self.iou_threshold = iou_threshold
        self.targets: list[Boxes] = []  # of each image in the batch, set before the losses

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Constructor arguments from the configuration."""
        return {
            **super().from_config(cfg, input_shape),
            "iou_threshold": cfg.MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH,
        }

    def losses(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """The losses of ``FastRCNNOutputLayers``, classification weighted by ``weights``.

        Args:
            predictions: scores (R, 2) and box deltas (R, 4).
            proposals: one Instances an image, with ``gt_classes``.

        Returns:
            ``loss_cls`` and ``loss_box_reg``, scalars.
        """
        losses = super().losses(predictions, proposals)
        scores = predictions[0]
        if not len(scores):
            return losses
        classes = torch.cat([p.gt_classes for p in proposals])
        weights = self.weights(predictions, proposals)
        loss = F.cross_entropy(scores, classes, reduction="none")
        losses["loss_cls"] = (loss * weights).mean() * self.loss_weight.get("loss_cls", 1.0)
        self._log(weights, classes)
        return losses

    @torch.no_grad()
    def weights(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> torch.Tensor:
        """Weight (R,) float of every proposal: 0 dropped, 1 kept."""
        kept = []
        for boxes, targets in zip(
            self.predict_boxes(predictions, proposals), self.targets, strict=True
        ):
            if len(targets) and len(boxes):
                iou = pairwise_iou(Boxes(boxes), targets).amax(dim=1)
                kept.append((iou > self.iou_threshold).to(boxes))
            else:
                kept.append(boxes.new_ones(len(boxes)))
        return torch.cat(kept)

    def _log(self, weights: torch.Tensor, classes: torch.Tensor) -> None:
        storage = get_event_storage()
        background = classes == self.num_classes
        for name, group in (("background", background), ("foreground", ~background)):
            if group.any():
                storage.put_scalar(f"droploss/kept_{name}", weights[group].mean().item())
        without = sum(len(targets) == 0 for targets in self.targets)
        storage.put_scalar("droploss/images_without_targets", without)


@ROI_HEADS_REGISTRY.register()
class DropLossCascadeROIHeads(CascadeROIHeads):
    """``CascadeROIHeads`` with DropLoss in every stage.

    The threshold is ``MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH``. Predicted boxes are compared with
    the image's full list of targets (the released code compares with a sample of them).
    """

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_predictors"] = [
            DropLossOutputLayers(
                cfg, head.output_shape, box2box_transform=predictor.box2box_transform
            )
            for head, predictor in zip(parts["box_heads"], parts["box_predictors"], strict=True)
        ]
        return parts

    def _forward_box(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, torch.Tensor] | list[Instances]:
        if self.training:
            for predictor in self.box_predictor:
                predictor.targets = [target.gt_boxes for target in targets]
        return super()._forward_box(features, proposals, targets)
