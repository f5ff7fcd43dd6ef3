"""A frozen self-supervised ViT under a light feature pyramid.

Shape letters: N images, C channels, H and W rows and columns of the patch grid.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

from promerge_d2.modeling.relations import count_relations, relate
from promerge_d2.modeling.token_cache import TokenCache
from promerge_d2.utils.errors import UserError

if TYPE_CHECKING:  # timm is slow to import
    from promerge_d2 import features

logger = logging.getLogger(__name__)


class FrozenViT(Backbone):
    """Final patch tokens of a frozen ViT, one cell for ``stride`` pixels of the detector's image.

    detectron2's poolers insist on strides that are powers of two: for a patch of 14 the image is
    resampled by 14/16, so that one token stands for 16 pixels. The ViT is neither trained nor
    saved with checkpoints: its weights come from the features' registry. A checkpoint holds which
    they were (``network``), and is refused with others.

    Args:
        extractor: a ``promerge_d2.features.FeatureExtractor``.
        cache: keeps tokens by the content of the normalised image, or None.
        layers: blocks, counted from 1, whose tokens go beside the final ones: earlier tokens say
            better where something is. Their norm is that of layers, without weights.
        relations: whether the channels of ``relations.relate`` go behind the tokens.

    Raises:
        UserError: the ViT has no such block.
    """

    network: torch.Tensor

    def __init__(
        self,
        extractor: nn.Module,
        cache: TokenCache | None = None,
        layers: Sequence[int] = (),
        relations: bool = False,
    ) -> None:
        super().__init__()
        # past nn.Module's own registration, so that no checkpoint holds it and no optimiser
        object.__setattr__(self, "extractor", extractor)
        self.patch = extractor.backbone.patch
        self.stride = 1 << (self.patch - 1).bit_length()  # 8, 16 for 14, 16
        self.cache = cache
        self.layers = sorted(layers)
        blocks = len(extractor.vit.blocks) if self.layers else 0
        if any(not 1 <= layer < blocks for layer in self.layers):
            raise UserError(
                f"MODEL.FROZEN_VIT.LAYERS {self.layers}: give blocks of {extractor.backbone.name} "
                f"before its last, 1 to {blocks - 1}"
            )
        about = f"{extractor.backbone.name} (weights SHA-256 {extractor.weights_sha256})"
        if self.layers:
            about += f", LAYERS {','.join(map(str, self.layers))}"
        self.relations = count_relations(1 + len(self.layers)) if relations else 0
        if relations:
            about += ", RELATIONS"
        self.register_buffer("network", _text_to_tensor(about))
        self._out_features = ["tokens"]
        width = extractor.backbone.width * (1 + len(self.layers))
        self._out_feature_channels = {"tokens": width + self.relations}
        self._out_feature_strides = {"tokens": self.stride}

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> FrozenViT:
        self.extractor._apply(fn, *args, **kwargs)  # the ViT follows .to() all the same
        return super()._apply(fn, *args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        if prefix + "network" not in state_dict:
            logger.warning(
                "the checkpoint does not say which ViT it was trained on; %s is used",
                _tensor_to_text(self.network),
            )
        trained = state_dict.setdefault(prefix + "network", self.network)
        if not torch.equal(trained.cpu(), self.network.cpu()):
            raise UserError(
                f"the checkpoint was trained on {_tensor_to_text(trained)}, not on "
                f"{_tensor_to_text(self.network)}: set MODEL.FROZEN_VIT.BACKBONE and "
                "MODEL.FROZEN_VIT.WEIGHTS to what it was trained on"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def size_divisibility(self) -> int:
        """What image sides are padded to a multiple of, in pixels."""
        return self.stride

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the tokens of normalised images, or take them from the cache.

        Args:
            images: (N, 3, H * stride, W * stride) float, RGB minus ImageNet's mean over its
                standard deviation.

        Returns:
            ``{"tokens": (N, C, H, W)}`` float32, relations last; with a cache, as it keeps them,
            also those that are computed now.
        """
        if self.cache is None:
            return {"tokens": self.facets(images, ("token",))["token"]}
        tokens = [self._cached(image, self.cache) for image in images]
        return {"tokens": torch.stack(tokens)}

    def resample(self, images: torch.Tensor) -> torch.Tensor:
        """Bring images (N, 3, H * stride, W * stride) to the ViT's patch."""
        if self.patch == self.stride:
            return images
        height, width = (side // self.stride * self.patch for side in images.shape[2:])
        return F.interpolate(
            images, (height, width), mode="bicubic", align_corners=False, antialias=True
        )

    def facets(self, images: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute several facets in one pass, see ``FeatureExtractor.facets``.

        Args:
            images: (N, 3, H * stride, W * stride) float32.
            names: out of ``FACETS``.

        Returns:
            For each name (N, C, H, W) float32; ``token`` has those of ``layers`` and the relations
            as well.
        """
        earlier: list[torch.Tensor] = []
        hooks = [
            self.extractor.vit.blocks[layer - 1].register_forward_hook(
                lambda _block, _inputs, tokens: earlier.append(tokens)
            )
            for layer in self.layers
        ]
        try:
            found = self.extractor.facets(self.resample(images), names)
        finally:
            for hook in hooks:
                hook.remove()
        if earlier and "token" in names:
            final = found["token"]
            prefix = self.extractor.backbone.prefix_tokens
            maps = [
                F.layer_norm(tokens[:, prefix:], tokens.shape[-1:])
                .transpose(1, 2)
                .reshape(final.shape)
                .float()
                for tokens in earlier
            ]
            found["token"] = torch.cat([final, *maps], dim=1)
        if self.relations and "token" in names:
            found["token"] = self._with_relations(images, found["token"])
        return found

    def _with_relations(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Put relations behind tokens (N, C, H, W); where images are padded they are 0."""
        # a pixel of an image is never 0: no pixel mean is a whole number
        inside = F.max_pool2d(images.abs().amax(1), self.stride) > 0
        width = self.extractor.backbone.width
        related = [
            relate(image.split(width), mask) for image, mask in zip(tokens, inside, strict=True)
        ]
        return torch.cat([tokens, torch.stack(related)], dim=1)

    def _cached(self, image: torch.Tensor, cache: TokenCache) -> torch.Tensor:
        file = cache.file(image)
        tokens = cache.read(file)
        if tokens is None:  # one by one: no bit of an image's tokens depends on its neighbours
            tokens = cache.write(file, self.facets(image[None], ("token",))["token"][0])
        return tokens.to(image.device).float()


def _text_to_tensor(text: str) -> torch.Tensor:
    """(160,) uint8, of one size for all: detectron2 passes over what has another shape."""
    return torch.tensor(list(text.encode().ljust(160)), dtype=torch.uint8)


def _tensor_to_text(tensor: torch.Tensor) -> str:
    return bytes(tensor.tolist()).decode(errors="replace").rstrip()


class FrozenViTPyramid(Backbone):
    """A pyramid of a frozen ViT's tokens: one projection, resampled and convolved for each level.

    ViTDet's simple feature pyramid projects for each level anew: twice the operations, and more to
    learn.

    Args:
        net: gives the tokens.
        channels: C of every level.
        scale_factors: of the levels, finest first, each half the one before; 1 is the tokens' own.
            One more level of half the last's size is for the proposals.
        norm: of detectron2's names, behind each convolution.
        square_pad: side of the square that images are padded to, in pixels; 0: none.
    """

    def __init__(
        self,
        net: FrozenViT,
        channels: int,
        scale_factors: Sequence[float],
        norm: str,
        square_pad: int,
    ) -> None:
        super().__init__()
        strides = [int(net.stride / scale) for scale in scale_factors]
        self._out_feature_strides = {
            f"p{int(math.log2(s))}": s for s in [*strides, 2 * strides[-1]]
        }
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, channels)
        self._padding = {
            "size_divisibility": max(strides[-1], net.size_divisibility),
            "square_size": square_pad,
        }
        self.net = net
        self.scale_factors = list(scale_factors)

        def convolution(inputs: int, size: int) -> Conv2d:
            normed = get_norm(norm, channels)
            return Conv2d(
                inputs, channels, size, padding=size // 2, bias=normed is None, norm=normed
            )

        inputs = net.output_shape()["tokens"].channels
        self.lateral = convolution(inputs - net.relations, 1)
        # apart: a hundred channels would be lost among a thousand of tokens
        self.lateral_relations = convolution(net.relations, 1) if net.relations else None
        self.levels = nn.ModuleList(convolution(channels, 3) for _ in strides)

    @property
    def padding_constraints(self) -> dict[str, int]:
        """What images are padded to, in pixels."""
        return self._padding

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the levels of normalised images, see ``FrozenViT.forward``.

        Args:
            images: (N, 3, h, w) float, padded as ``padding_constraints`` has it.

        Returns:
            ``{"p3": (N, C, h / 8, w / 8), ...}`` float32, by the logarithm of the stride.
        """
        tokens = self.net(images)["tokens"]
        own = tokens.shape[1] - self.net.relations
        lateral = self.lateral(tokens[:, :own])
        if self.lateral_relations is not None:
            lateral = lateral + self.lateral_relations(tokens[:, own:])
        maps = []
        for scale, level in zip(self.scale_factors, self.levels, strict=True):
            if scale < 1:
                resampled = F.max_pool2d(lateral, int(1 / scale))
            else:
                resampled = F.interpolate(
                    lateral, scale_factor=scale, mode="bilinear", align_corners=False
                )
            maps.append(level(F.relu(resampled)))
        maps.append(F.max_pool2d(maps[-1], kernel_size=1, stride=2))
        return dict(zip(self._out_features, maps, strict=True))


@BACKBONE_REGISTRY.register()
def build_frozen_vit_pyramid_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build the backbone of ``MODEL.FROZEN_VIT``; its weights are fetched on first use.

    Args:
        cfg: the configuration.
        input_shape: of the image; 3 channels.

    Raises:
        UserError: the image is not RGB or not normalised as the ViT's weights want it, the square
            to pad to is smaller than images can be, or the cache is on while images are random.
    """
    from promerge_d2.features import FeatureExtractor, get_backbone  # timm is slow to import

    vit = cfg.MODEL.FROZEN_VIT
    if cfg.INPUT.FORMAT != "RGB":
        raise UserError(f"a frozen ViT sees RGB: set INPUT.FORMAT RGB, not {cfg.INPUT.FORMAT}")
    largest = max(cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TEST)
    if 0 < vit.SQUARE_PAD < largest:  # detectron2 would cut the rest off without a word
        raise UserError(
            f"MODEL.FROZEN_VIT.SQUARE_PAD {vit.SQUARE_PAD} cuts images of up to {largest} pixels: "
            "lower INPUT.MAX_SIZE_TRAIN and INPUT.MAX_SIZE_TEST to it, or raise it"
        )
    if vit.CACHE_DIR:
        check_cacheable(cfg)
    _check_pixels(cfg, get_backbone(vit.BACKBONE))
    extractor = FeatureExtractor.from_name(vit.BACKBONE, vit.WEIGHTS or None, facet="token")
    cache = None
    if vit.CACHE_DIR:
        cache = TokenCache.from_config(cfg, extractor.weights_sha256)
    return FrozenViTPyramid(
        FrozenViT(extractor, cache, vit.LAYERS, vit.RELATIONS),
        cfg.MODEL.FPN.OUT_CHANNELS,
        vit.SCALE_FACTORS,
        cfg.MODEL.FPN.NORM,
        vit.SQUARE_PAD,
    )


def check_cacheable(cfg: CfgNode) -> None:
    """Refuse a token cache for images that never come again.

    Raises:
        UserError: every key that makes training images others each time, named.
    """
    random = []
    if cfg.INPUT.COPY_PASTE.ENABLED:
        random.append("INPUT.COPY_PASTE.ENABLED False")
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING != "choice":
        random.append("INPUT.MIN_SIZE_TRAIN_SAMPLING choice (sizes of a list)")
    if cfg.INPUT.CROP.ENABLED:
        random.append("INPUT.CROP.ENABLED False")
    if not cfg.MODEL.FROZEN_VIT.SQUARE_PAD:
        random.append("MODEL.FROZEN_VIT.SQUARE_PAD above 0 (padding depends on the batch)")
    if random:
        raise UserError(
            "MODEL.FROZEN_VIT.CACHE_DIR keeps tokens of images that come again; it needs "
            + ", ".join(random)
        )


def _check_pixels(cfg: CfgNode, backbone: features.Backbone) -> None:
    wanted = list(backbone.pixel_mean), list(backbone.pixel_std)
    if (list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)) != wanted:
        raise UserError(
            f"{backbone.name} was trained on other pixel values: set MODEL.PIXEL_MEAN "
            f'"{wanted[0]}" MODEL.PIXEL_STD "{wanted[1]}"'
        )
