# What the LazyConfig twins of the R-50 recipes share; the twin of Base-RCNN-FPN.yaml.
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from omegaconf import DictConfig

from promerge_d2.data.loader import build_test_loader, build_train_loader
from promerge_d2.data.mapper import LabelChoice, LabelMapper
from promerge_d2.engine.lazy import ClippedSGD, evaluator_of
from promerge_d2.modeling import IgnoringRPN, WeightedMaskHead


def rcnn_fpn(name: str) -> DictConfig:
    """One of detectron2's models, for one class, with what all recipes have."""
    model = model_zoo.get_config(f"common/models/{name}.py").model
    model.pixel_mean = [123.675, 116.280, 103.530]  # ImageNet's, RGB in 0..255
    model.pixel_std = [58.395, 57.120, 57.375]
    model.input_format = "RGB"
    model.backbone.norm = "${train.norm}"
    body = model.backbone.bottom_up
    body.freeze_at = 0
    body.stem.norm = body.stages.norm = "${train.norm}"
    body.stages.stride_in_1x1 = False
    model.proposal_generator.update(
        _target_=IgnoringRPN, post_nms_topk=(4000, 1000), nms_thresh=0.65
    )
    model.roi_heads.num_classes = 1
    model.roi_heads.mask_head._target_ = WeightedMaskHead
    return model


dataloader = dict(
    train=L(build_train_loader)(
        names=("imagenet_promerge_train",),
        mapper=L(LabelMapper)(
            is_train=True,
            augmentations=[
                L(T.ResizeShortestEdge)(
                    short_edge_length=(240, 320, 480, 640, 672, 704, 736, 768, 800, 1024),
                    max_size=1333,
                    sample_style="choice",
                ),
                L(T.RandomFlip)(horizontal=True),
            ],
            image_format="RGB",
            use_instance_mask=True,
            instance_mask_format="bitmask",
            choice=L(LabelChoice)(),
        ),
        batch=16,
        seed="${train.seed}",
        paste=dict(rate=1.0, min_ratio=0.3, max_ratio=1.0),
        num_workers=4,
    ),
    test=L(build_test_loader)(
        names=("cls_agnostic_coco",),
        mapper=L(LabelMapper)(
            is_train=False,
            augmentations=[
                L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333, sample_style="choice")
            ],
            image_format="RGB",
        ),
        num_workers=4,
    ),
    evaluator=L(evaluator_of)(names="${dataloader.test.names}", output_dir="${train.output_dir}"),
)

optimizer = L(ClippedSGD)(max_norm=1.0, lr=0.01, momentum=0.9, weight_decay=5e-5)

train = dict(
    output_dir="output",
    init_checkpoint="weights/dino_resnet50_d2.pkl",  # tools/convert_dino_resnet.py makes it
    data_sets=[],  # [name, labels.json, image folder] each, to register
    max_iter=160000,
    norm="SyncBN",  # on a CPU: BN
    amp=dict(enabled=True),
    precise_bn=dict(enabled=True, num_iter=200),
    checkpoint_period=5000,
    eval_period=0,
    device="cuda",
    seed=-1,
)
