"""RoI heads for pseudo-labels: DropLoss, and losses that know how sure a label is.

DropLoss does not punish boxes where no pseudo-label is (CutLER; docs/recipe.md). Ignored regions,
weights and soft targets are our own; they do nothing unless the data has their fields.

What the losses need beyond detectron2's fields, the heads put on the proposals where they label
them, as detectron2 does with ``gt_classes``:

- ``targets`` (R, T, 4) float: the boxes of all targets of the image, the same for each proposal;
- ``ignored`` (R,) bool, only where the data says what to ignore: whether a proposal would be
  matched to something ignored;
- ``gt_weights``, ``gt_soft`` (R,) float: of the target that a proposal is matched to.

Shape letters: R proposals of an image or of all images, T targets of an image, F proposals that are
matched to a target. Boxes are XYXY in pixels of the padded image.
"""

from __future__ import annotations

from typing import Any

import fvcore.nn
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ROIAlign, ShapeSpec, ciou_loss, diou_loss
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import (
    ROI_MASK_HEAD_REGISTRY,
    CascadeROIHeads,
    MaskRCNNConvUpsampleHead,
    ROIHeads,
    StandardROIHeads,
)
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import nn

from promerge_d2.modeling.ignoring import in_ignored, split_ignored, without_masks
from promerge_d2.utils.errors import UserError


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
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, iou_threshold: float, **kwargs: Any) -> None:
        super().__init__(input_shape, **kwargs)
        self.iou_threshold = iou_threshold

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Return the constructor's arguments."""
        return {
            **super().from_config(cfg, input_shape),
            "iou_threshold": cfg.MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH,
        }

    def losses(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """Compute the losses of ``FastRCNNOutputLayers``, weighted.

        Args:
            predictions: scores (R, classes + 1) and box deltas (R, 4), or (R, 4 * classes).
            proposals: one Instances an image, with ``gt_classes``, ``targets`` and what else the
                module's docstring lists.

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
        ignored = concat_field(proposals, "ignored", False)
        if ignored is not None:
            ignored = ignored & ~objects
        self._log(kept, ignored, objects, proposals)
        label_weights = concat_field(proposals, "gt_weights", 1.0)
        weights = kept if ignored is None else kept * ~ignored
        loss = F.cross_entropy(scores, classes, reduction="none")
        if label_weights is not None:
            weights = weights * torch.where(objects, label_weights, 1.0)
            losses["loss_box_reg"] = self.loss_weight.get("loss_box_reg", 1.0) * (
                (self._box_losses(deltas, proposals, classes) * label_weights[objects]).sum()
                / len(classes)
            )
        soft = concat_field(proposals, "gt_soft", 1.0)
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
        """Return DropLoss's weight (R,) float of every proposal: 0 dropped, 1 kept."""
        kept = []
        for boxes, image in zip(self.predict_boxes(predictions, proposals), proposals, strict=True):
            if image.targets.numel():
                targets = Boxes(image.targets[0])
                iou = pairwise_iou(Boxes(boxes.reshape(-1, 4)), targets).amax(dim=1)
                best = iou.reshape(len(boxes), -1).amax(dim=1)  # of the boxes of all classes
                kept.append((best > self.iou_threshold).to(boxes))
            else:
                kept.append(boxes.new_ones(len(boxes)))
        return torch.cat(kept)

    def _box_losses(
        self, deltas: torch.Tensor, proposals: list[Instances], classes: torch.Tensor
    ) -> torch.Tensor:
        """Compute the regression loss (F,) of every proposal that is matched to a target."""
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

    def _log(
        self,
        kept: torch.Tensor,
        ignored: torch.Tensor | None,
        objects: torch.Tensor,
        proposals: list[Instances],
    ) -> None:
        """Log what is dropped and what is ignored; waits for the GPU once."""
        counts = [objects.sum(), kept.sum(), (kept * objects).sum()]
        if ignored is not None:
            counts.append(ignored.sum())
        foreground, all_kept, kept_foreground, *ignored_background = torch.stack(
            [count.float() for count in counts]
        ).tolist()
        background = len(objects) - foreground
        storage = get_event_storage()
        if background:
            kept_background = all_kept - kept_foreground
            storage.put_scalar("droploss/kept_background", kept_background / background)
        if foreground:
            storage.put_scalar("droploss/kept_foreground", kept_foreground / foreground)
        without = sum(image.targets.shape[1] == 0 for image in proposals)
        storage.put_scalar("droploss/images_without_targets", without)
        for count in ignored_background:
            storage.put_scalar("ignored_background", count / max(1, background))


def concat_field(
    proposals: list[Instances], name: str, default: float | bool
) -> torch.Tensor | None:
    """Return a field (R,) of all proposals, or None where no image has it.

    Args:
        proposals: one Instances an image, with ``gt_classes``.
        name: of the field.
        default: its value in images that lack it, since they have no target.
    """
    if not any(image.has(name) for image in proposals):
        return None
    fields = [
        image.get(name)
        if image.has(name)
        else torch.full((len(image),), default, device=image.gt_classes.device)
        for image in proposals
    ]
    return torch.cat(fields)


def add_loss_fields(
    proposals: list[Instances],
    trained: list[Instances],
    ignored: list[Instances],
    matcher: Matcher,
) -> None:
    """Put ``targets`` and, where the data says what to ignore, ``ignored`` on proposals.

    Args:
        proposals: of each image, with ``proposal_boxes``; changed in place.
        trained: the targets of each image.
        ignored: what is ignored in each image, of ``split_ignored``.
        matcher: what matches these proposals to targets.
    """
    known = any(truth.has("gt_ignore") for truth in trained)
    for image, truth, rest in zip(proposals, trained, ignored, strict=True):
        image.targets = truth.gt_boxes.tensor.expand(len(image), -1, -1)
        if known:
            image.ignored = in_ignored(image.proposal_boxes, rest, matcher)


class SharedMasks:
    """Masks of regions that are matched to few targets: numbers of masks instead of copies.

    detectron2 copies a target's whole mask for each of its regions, twice.

    Args:
        masks: of the targets.
        rows: (R,) int64, which of them each region has.
    """

    def __init__(self, masks: BitMasks, rows: torch.Tensor) -> None:
        self.masks, self.rows = masks, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, regions: torch.Tensor) -> SharedMasks:
        return SharedMasks(self.masks, self.rows[regions])

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Cut the masks out as ``BitMasks`` does.

        Args:
            boxes: (R, 4) float, XYXY in pixels.
            mask_size: m, the side of the result.

        Returns:
            (R, m, m) bool.
        """
        regions = torch.cat([self.rows[:, None].to(boxes), boxes], dim=1)
        masks = self.masks.tensor[:, None].float()
        cut = ROIAlign((mask_size, mask_size), 1.0, sampling_ratio=0, aligned=True)
        return cut(masks, regions)[:, 0] >= 0.5


def share_masks(targets: list[Instances]) -> list[Instances]:
    """Return targets whose bit masks, where they have some, are ``SharedMasks``."""
    shared = []
    for image in targets:
        fields = image.get_fields()
        masks = fields.get("gt_masks")
        if isinstance(masks, BitMasks):
            rows = torch.arange(len(masks), device=masks.device)
            fields = {**fields, "gt_masks": SharedMasks(masks, rows)}
        shared.append(Instances(image.image_size, **fields))
    return shared


class _LabelsForLosses(ROIHeads):
    """Put what the losses need on the sampled proposals, before any class of detectron2's."""

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Do as ``ROIHeads`` does, and add what the first stage's losses need."""
        trained, ignored = split_ignored(targets)
        sampled = super().label_and_sample_proposals(proposals, share_masks(trained))
        add_loss_fields(sampled, trained, ignored, self.proposal_matcher)
        return sampled


class ContextPooler(nn.Module):
    """A pooler of regions with what is around them (our own).

    Where a region is smaller than its object, the object's ends lie outside of it: without them a
    box head can only guess how far to move the box.

    Args:
        pooler: of detectron2.
        context: the pooled region's side, in sides of the region; 1 is detectron2's.

    Raises:
        UserError: a region would be cut.
    """

    def __init__(self, pooler: ROIPooler, context: float) -> None:
        super().__init__()
        if context < 1:
            raise UserError(f"MODEL.ROI_BOX_HEAD.CONTEXT is {context}; give 1 or more")
        self.pooler = pooler
        self.context = context

    def forward(self, features: list[torch.Tensor], regions: list[Boxes]) -> torch.Tensor:
        """Pool as detectron2 does, see ``ROIPooler.forward``."""
        around = []
        for boxes in regions:
            first, last = boxes.tensor.split(2, dim=1)
            more = (last - first) * (self.context - 1) / 2
            around.append(Boxes(torch.cat([first - more, last + more], dim=1)))
        return self.pooler(features, around)


def with_context(pooler: ROIPooler, cfg: CfgNode) -> nn.Module:
    """Return a box pooler that sees what ``MODEL.ROI_BOX_HEAD.CONTEXT`` says."""
    context = cfg.MODEL.ROI_BOX_HEAD.CONTEXT
    return pooler if context == 1 else ContextPooler(pooler, context)


@ROI_HEADS_REGISTRY.register()
class DropLossCascadeROIHeads(_LabelsForLosses, CascadeROIHeads):
    """``CascadeROIHeads`` with DropLoss in every stage.

    The threshold is ``MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH``. Predicted boxes are compared with
    the image's full list of targets (the released code compares with a sample of them).
    """

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_pooler"] = with_context(parts["box_pooler"], cfg)
        parts["box_predictors"] = [
            DropLossOutputLayers(
                cfg, head.output_shape, box2box_transform=predictor.box2box_transform
            )
            for head, predictor in zip(parts["box_heads"], parts["box_predictors"], strict=True)
        ]
        return parts

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        """Do as ``CascadeROIHeads`` does, and add what a later stage's losses need."""
        trained, ignored = split_ignored(without_masks(targets))
        proposals = super()._match_and_label_boxes(proposals, stage, trained)
        add_loss_fields(proposals, trained, ignored, self.proposal_matchers[stage])
        for image, truth in zip(proposals, trained, strict=True):
            names = [name for name in ("gt_weights", "gt_soft") if truth.has(name)]
            if len(truth) and names:
                best = pairwise_iou(truth.gt_boxes, image.proposal_boxes).max(dim=0).indices
                for name in names:
                    image.set(name, truth.get(name)[best])
        return proposals


@ROI_HEADS_REGISTRY.register()
class DropLossStandardROIHeads(_LabelsForLosses, StandardROIHeads):
    """``StandardROIHeads`` with DropLoss in its box head; see ``DropLossCascadeROIHeads``."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_pooler"] = with_context(parts["box_pooler"], cfg)
        parts["box_predictor"] = DropLossOutputLayers(cfg, parts["box_head"].output_shape)
        return parts


@ROI_MASK_HEAD_REGISTRY.register()
class WeightedMaskHead(MaskRCNNConvUpsampleHead):
    """detectron2's mask head; the loss of proposals with ``gt_weights`` is multiplied by it."""

    def forward(self, x: torch.Tensor, instances: list[Instances]) -> dict | list[Instances]:
        """Do as ``BaseMaskRCNNHead`` does; the weighted loss is divided by the number of masks."""
        if not self.training or not any(image.has("gt_weights") for image in instances):
            return super().forward(x, instances)
        return {"loss_mask": self.loss_weight * weighted_mask_loss(self.layers(x), instances)}


def weighted_mask_loss(logits: torch.Tensor, instances: list[Instances]) -> torch.Tensor:
    """Compute the cross-entropy of masks, each weighted, over their number.

    Args:
        logits: (F, 1 or classes, m, m) float, over the proposals' boxes.
        instances: F in all images, with ``gt_masks``, ``gt_classes``, ``proposal_boxes`` and, where
            an image has targets, ``gt_weights``.

    Returns:
        The loss, a scalar; 0 without masks.
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
    weights = concat_field(instances, "gt_weights", 1.0)
    return losses.mean() if weights is None else (losses * weights).mean()
