"""RoI heads for pseudo-labels: DropLoss, and losses that know how sure a label is.

DropLoss: no punishment for boxes where no pseudo-label is (CutLER; promerge.md B2). Ignored
regions, weights and soft targets are our own; they do nothing unless the data has their fields.

Shape letters: R proposals of all images, F of them matched to a target.
"""

from __future__ import annotations

from collections.abc import Sequence

import fvcore.nn
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, ciou_loss, diou_loss
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    ROI_MASK_HEAD_REGISTRY,
    CascadeROIHeads,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage

from promerge_d2.modeling.ignoring import in_ignored, split_ignored


class DropLossOutputLayers(FastRCNNOutputLayers):
    """A box predictor whose classification loss leaves out proposals far from every target.

    A proposal's weight is 0 when its *predicted* box of this stage has an IoU of at most
    ``iou_threshold`` with every target of its image, else 1, without gradient. The loss is the
    weighted softmax cross-entropy summed over proposals and divided by *all* of them, dropped ones
    included. Box regression is untouched. An image without targets keeps the ordinary loss.

    Background where something is ignored has weight 0 as well. Proposals with ``gt_weights`` have
    their classification and box losses multiplied by it if they are matched to a target; with
    ``gt_soft``, that is the target of their class, and the rest is background's.

    Args:
        input_shape: of the box head's output.
        iou_threshold: in [0, 1]; negative drops nothing.
        **kwargs: of ``FastRCNNOutputLayers``.

    Attributes:
        targets: the boxes of each image in the batch, set before the losses.
        ignored: what is ignored in each, set before the losses; empty: nothing anywhere.
        matcher: what matched the proposals to targets; needed where something is ignored.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, iou_threshold: float, **kwargs) -> None:  # noqa: ANN003
        super().__init__(input_shape, **kwargs)
        self.iou_threshold = iou_threshold
        self.targets: list[Boxes] = []
        self.ignored: list[Instances] = []
        self.matcher: Matcher | None = None

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
        """The losses of ``FastRCNNOutputLayers``, weighted.

        Args:
            predictions: scores (R, classes + 1) and box deltas (R, 4), or (R, 4 * classes).
            proposals: one Instances an image, with ``gt_classes``.

        Returns:
            ``loss_cls`` and ``loss_box_reg``, scalars.
        """
        losses = super().losses(predictions, proposals)
        scores, deltas = predictions
        if not len(scores):
            return losses
        classes = torch.cat([p.gt_classes for p in proposals])
        objects = classes != self.num_classes
        kept = self.weights(predictions, proposals)
        ignored = self.is_ignored(proposals) & ~objects
        self._log(kept, ignored, classes)
        label_weights = of_proposals(proposals, "gt_weights")
        weights = kept * ~ignored
        loss = F.cross_entropy(scores, classes, reduction="none")
        if label_weights is not None:
            weights = weights * torch.where(objects, label_weights, 1.0)
            losses["loss_box_reg"] = self.loss_weight.get("loss_box_reg", 1.0) * (
                (self._box_losses(deltas, proposals, classes) * label_weights[objects]).sum()
                / len(classes)
            )
        soft = of_proposals(proposals, "gt_soft")
        if soft is not None:
            share = torch.where(objects, soft, 1.0)
            background = torch.full_like(classes, self.num_classes)
            loss = share * loss + (1 - share) * F.cross_entropy(
                scores, background, reduction="none"
            )
        losses["loss_cls"] = (loss * weights).mean() * self.loss_weight.get("loss_cls", 1.0)
        return losses

    @torch.no_grad()
    def weights(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> torch.Tensor:
        """DropLoss's weight (R,) float of every proposal: 0 dropped, 1 kept."""
        kept = []
        for boxes, targets in zip(
            self.predict_boxes(predictions, proposals), self.targets, strict=True
        ):
            if len(targets) and len(boxes):
                iou = pairwise_iou(Boxes(boxes.reshape(-1, 4)), targets).amax(dim=1)
                best = iou.reshape(len(boxes), -1).amax(dim=1)  # of the boxes of all classes
                kept.append((best > self.iou_threshold).to(boxes))
            else:
                kept.append(boxes.new_ones(len(boxes)))
        return torch.cat(kept)

    def is_ignored(self, proposals: list[Instances]) -> torch.Tensor:
        """Which proposals (R,) bool would be matched to something ignored."""
        if not any(map(len, self.ignored)):
            count = sum(map(len, proposals))
            return torch.zeros(count, dtype=torch.bool, device=proposals[0].gt_classes.device)
        return torch.cat(
            [
                in_ignored(image.proposal_boxes, ignored, self.matcher)
                for image, ignored in zip(proposals, self.ignored, strict=True)
            ]
        )

    def _box_losses(
        self, deltas: torch.Tensor, proposals: list[Instances], classes: torch.Tensor
    ) -> torch.Tensor:
        """Regression loss (F,) of every proposal that is matched to a target."""
        objects = classes != self.num_classes
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])[objects]
        wanted = torch.cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )[objects]
        moves = deltas[objects]
        if moves.shape[1] > 4:  # of every class
            moves = moves.view(len(moves), -1, 4)[torch.arange(len(moves)), classes[objects]]
        if self.box_reg_loss_type == "smooth_l1":
            truth = self.box2box_transform.get_deltas(boxes, wanted)
            return fvcore.nn.smooth_l1_loss(moves, truth, self.smooth_l1_beta, "none").sum(dim=1)
        kinds = {"giou": fvcore.nn.giou_loss, "diou": diou_loss, "ciou": ciou_loss}
        found = self.box2box_transform.apply_deltas(moves, boxes)
        return kinds[self.box_reg_loss_type](found, wanted, reduction="none")

    def _log(self, kept: torch.Tensor, ignored: torch.Tensor, classes: torch.Tensor) -> None:
        storage = get_event_storage()
        background = classes == self.num_classes
        for name, group in (("background", background), ("foreground", ~background)):
            if group.any():
                storage.put_scalar(f"droploss/kept_{name}", kept[group].mean().item())
        without = sum(len(targets) == 0 for targets in self.targets)
        storage.put_scalar("droploss/images_without_targets", without)
        if self.ignored:
            share = ignored.sum().item() / max(1, background.sum().item())
            storage.put_scalar("ignored_background", share)


def of_proposals(proposals: list[Instances], name: str) -> torch.Tensor | None:
    """A field (R,) of all proposals, 1 where an image has no target; None where none has it."""
    if not any(image.has(name) for image in proposals):
        return None
    fields = [
        image.get(name)
        if image.has(name)
        else torch.ones(len(image), device=image.gt_classes.device)
        for image in proposals
    ]
    return torch.cat(fields)


def set_loss_targets(
    predictors: Sequence[DropLossOutputLayers],
    matchers: Sequence[Matcher],
    targets: list[Instances],
) -> list[Instances]:
    """Give box predictors what their losses need.

    Args:
        predictors: of every stage.
        matchers: what matches proposals to targets in each.
        targets: of each image, ignored ones among them or not.

    Returns:
        The targets of each image without the ignored.
    """
    trained, ignored = split_ignored(targets)
    for predictor, matcher in zip(predictors, matchers, strict=True):
        predictor.targets = [target.gt_boxes for target in trained]
        predictor.ignored = ignored if any(target.has("gt_ignore") for target in targets) else []
        predictor.matcher = matcher
    return trained


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

    def forward(self, images, features, proposals, targets=None):  # noqa: ANN001, ANN201
        """See ``CascadeROIHeads``."""
        if self.training:
            targets = set_loss_targets(self.box_predictor, self.proposal_matchers, targets)
        return super().forward(images, features, proposals, targets)

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        """detectron2's, which hands on boxes and classes only; here what a label weighs too."""
        proposals = super()._match_and_label_boxes(proposals, stage, targets)
        for image, truth in zip(proposals, targets, strict=True):
            names = [name for name in ("gt_weights", "gt_soft") if truth.has(name)]
            if len(truth) and names:
                best = pairwise_iou(truth.gt_boxes, image.proposal_boxes).max(dim=0).indices
                for name in names:
                    image.set(name, truth.get(name)[best])
        return proposals


@ROI_HEADS_REGISTRY.register()
class DropLossStandardROIHeads(StandardROIHeads):
    """``StandardROIHeads`` with DropLoss in its box head; see ``DropLossCascadeROIHeads``."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_predictor"] = DropLossOutputLayers(cfg, parts["box_head"].output_shape)
        return parts

    def forward(self, images, features, proposals, targets=None):  # noqa: ANN001, ANN201
        """See ``StandardROIHeads``."""
        if self.training:
            targets = set_loss_targets([self.box_predictor], [self.proposal_matcher], targets)
        return super().forward(images, features, proposals, targets)


@ROI_MASK_HEAD_REGISTRY.register()
class WeightedMaskHead(MaskRCNNConvUpsampleHead):
    """detectron2's mask head; the loss of proposals with ``gt_weights`` is multiplied by it."""

    def forward(self, x: torch.Tensor, instances: list[Instances]) -> dict | list[Instances]:
        """See ``BaseMaskRCNNHead``; the weighted loss is divided by the number of masks."""
        if not self.training or not any(image.has("gt_weights") for image in instances):
            return super().forward(x, instances)
        return {"loss_mask": self.loss_weight * weighted_mask_loss(self.layers(x), instances)}


def weighted_mask_loss(logits: torch.Tensor, instances: list[Instances]) -> torch.Tensor:
    """Cross-entropy of masks, each weighted, over their number.

    Args:
        logits: (F, 1 or classes, m, m).
        instances: F in all images, with ``gt_masks``, ``gt_classes``, ``proposal_boxes`` and, where
            an image has targets, ``gt_weights``.
    """
    if not len(logits):
        return logits.sum() * 0
    truth = torch.cat(
        [
            image.gt_masks.crop_and_resize(image.proposal_boxes.tensor, logits.shape[-1])
            for image in instances
            if len(image)
        ]
    ).to(logits)
    classes = torch.cat([image.gt_classes for image in instances])
    channels = torch.zeros_like(classes) if logits.shape[1] == 1 else classes
    logits = logits[torch.arange(len(logits)), channels]
    losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((1, 2))
    return (losses * of_proposals(instances, "gt_weights")).mean()
