"""The keys that promerge_d2 adds to detectron2's configuration."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_promerge_config(cfg: CfgNode) -> None:
    """Add promerge_d2's keys with their defaults; call it before ``cfg.merge_from_file``.

    Args:
        cfg: detectron2's configuration, changed in place.
    """
    # Data sets to register when a tool starts: [[name, COCO JSON, image folder], ...].
    # Relative paths start at the working folder; $DETECTRON2_DATASETS is expanded.
    cfg.DATASETS.PROMERGE = []

    # Copy-paste of objects between training images (docs/recipe.md).
    cfg.INPUT.COPY_PASTE = CfgNode()
    cfg.INPUT.COPY_PASTE.ENABLED = False
    cfg.INPUT.COPY_PASTE.RATE = 1.0  # share of images that receive objects
    cfg.INPUT.COPY_PASTE.MIN_RATIO = 0.3  # donor's size over receiver's, drawn between
    cfg.INPUT.COPY_PASTE.MAX_RATIO = 1.0  # these two

    # Which pseudo-labels are trained on, and what their scores do (our own; off). A label without
    # a score, as in ground truth, has 1.
    cfg.INPUT.PSEUDO_LABELS = CfgNode()
    cfg.INPUT.PSEUDO_LABELS.MIN_SCORE = 0.0  # labels below are not trained on
    cfg.INPUT.PSEUDO_LABELS.MAX_PER_IMAGE = 0  # only so many, of best score; 0: all
    # Labels that are not trained on, and crowds, are neither objects nor background.
    cfg.INPUT.PSEUDO_LABELS.IGNORE_REST = False
    # A label's RoI losses weigh (its score / the best of its image) to this power; 0: all alike.
    cfg.INPUT.PSEUDO_LABELS.WEIGHT_POWER = 0.0
    # The target of its classification is that ratio to this power, the rest is background's.
    cfg.INPUT.PSEUDO_LABELS.SOFT_POWER = 0.0

    # DropLossCascadeROIHeads, DropLossStandardROIHeads: proposals whose predicted box has at most
    # this IoU with every pseudo-box are left out of the classification loss. Negative: none is.
    cfg.MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH = -1.0

    # The box head sees this many times a region's sides: where a region is too small, its object's
    # ends lie outside.
    cfg.MODEL.ROI_BOX_HEAD.CONTEXT = 1.0

    # build_frozen_vit_pyramid_backbone: a self-supervised ViT, frozen, under a light feature
    # pyramid. The pyramid's width and norm are MODEL.FPN.OUT_CHANNELS and MODEL.FPN.NORM.
    cfg.MODEL.FROZEN_VIT = CfgNode()
    cfg.MODEL.FROZEN_VIT.BACKBONE = "dino_vits16"  # a name of promerge_d2.features.BACKBONES
    cfg.MODEL.FROZEN_VIT.WEIGHTS = ""  # a local file instead of the published weights
    # Blocks, counted from 1, whose tokens go beside the last block's.
    cfg.MODEL.FROZEN_VIT.LAYERS = []
    # Channels beside the tokens that say which patches resemble each other.
    cfg.MODEL.FROZEN_VIT.RELATIONS = False
    # p2, p3, p4, p5 of a patch of 14 or 16, and p6 above; with a patch of 8, leave out the 4.0.
    cfg.MODEL.FROZEN_VIT.SCALE_FACTORS = [4.0, 2.0, 1.0, 0.5]
    cfg.MODEL.FROZEN_VIT.SQUARE_PAD = 0  # pad images to this square, 0: to the batch's largest
    # Keep the tokens of every image seen in this folder, by the image's content, so that the ViT
    # sees no image twice. For sizes of a list, with or without flips; anything else that is
    # random never comes again and is refused.
    cfg.MODEL.FROZEN_VIT.CACHE_DIR = ""
    cfg.MODEL.FROZEN_VIT.CACHE_PRECISION = "fp32"  # or "fp16", half as large

    cfg.SOLVER.OPTIMIZER = "SGD"  # or "ADAMW"

    # The box of a detection is the tight box of its mask when it is scored and written.
    cfg.TEST.BOXES_FROM_MASKS = False
