"""Images to patch features.

Shape letters: N images, C channels, H and W rows and columns of the patch grid, T tokens
(prefix tokens first, then the H * W patches row by row).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn

from promerge_d2.features.registry import Backbone, get_backbone
from promerge_d2.features.weights import WeightsError, find_weights, read_state_dict
from promerge_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

FACETS = ("query", "key", "value", "token")
PRECISIONS = ("fp32", "bf16")
PIXEL_MEAN = (123.675, 116.28, 103.53)  # ImageNet's, of RGB in 0..255, as all backbones here
PIXEL_STD = (58.395, 57.12, 57.375)
_UNUSED_KEYS = ("mask_token",)  # DINOv2's files carry it; inference has no use for it


def resample_position_embedding(embedding: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resample a square grid of position embeddings as DINO and DINOv2 do.

    Bicubic, ``align_corners=False``, without antialiasing, and sampled by the scale factors
    ``(height + 0.1) / side`` and ``(width + 0.1) / side`` (a target size would give another map).

    Args:
        embedding: (1, side * side, C) float, patches row by row.
        height: rows H of the wanted grid.
        width: columns W of the wanted grid.

    Returns:
        (1, H * W, C).
    """
    side = round(embedding.shape[1] ** 0.5)
    if (height, width) == (side, side):
        return embedding
    grid = embedding.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(
        grid,
        scale_factor=((height + 0.1) / side, (width + 0.1) / side),
        mode="bicubic",
        align_corners=False,
        antialias=False,
    )
    assert grid.shape[2:] == (height, width)
    return grid.flatten(2).transpose(1, 2)


class FeatureExtractor(nn.Module):
    """A frozen Vision Transformer that gives one feature a patch.

    The default facet is the key of the last block, as ProMerge uses (promerge.md A3); the last
    block is computed only as far as the facets asked for need it.

    Args:
        backbone: the registry's entry.
        vit: timm's model of ``backbone.architecture``, weights loaded.
        facet: ``"key"``, ``"query"``, ``"value"`` (all heads side by side, before attention) or
            ``"token"`` (the block's output after the final LayerNorm).
        center: subtract the mean over the image's patches; None takes the entry's default.
        weights_sha256: hash of the weights file, for the record.
        precision: ``"fp32"``, or ``"bf16"`` for products in bfloat16 (autocast): several times
            faster on recent GPUs, slower on most CPUs, and the masks differ a little.
        compiled: run ``forward`` through ``torch.compile`` for fixed shapes: worth its minute of
            compiling on long runs only.
    """

    def __init__(
        self,
        backbone: Backbone,
        vit: nn.Module,
        facet: str = "key",
        center: bool | None = None,
        weights_sha256: str | None = None,
        precision: str = "fp32",
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if facet not in FACETS:
            raise UserError(f"no facet is named {facet!r}; known: {', '.join(FACETS)}")
        if precision not in PRECISIONS:
            raise UserError(f"no precision is named {precision!r}; known: {', '.join(PRECISIONS)}")
        self.backbone = backbone
        self.vit = vit.eval().requires_grad_(False)
        self.facet = facet
        self.center = backbone.center if center is None else center
        self.weights_sha256 = weights_sha256
        self.precision = precision
        self.compiled = compiled
        self._largest_batch = 0
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), False)
        if compiled:
            self.compile(dynamic=False)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if self.compiled:  # in another process: what was compiled does not travel
            self.compile(dynamic=False)

    @classmethod
    def from_name(
        cls,
        name: str,
        weights: str | os.PathLike | None = None,
        facet: str = "key",
        center: bool | None = None,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        compiled: bool = False,
    ) -> FeatureExtractor:
        """Build a registered backbone with its published weights, fetched on first use.

        Args:
            name: a name of the registry.
            weights: a local weights file instead of the official one.
            facet: see the class.
            center: see the class.
            device: where to compute.
            precision: see the class.
            compiled: see the class.

        Raises:
            UserError: unknown name, facet or precision, a device that cannot be used, or weights
                that are missing or wrong.
        """
        backbone = get_backbone(name)
        check_device(device)
        file, sha256 = find_weights(backbone, weights)
        logger.info("features: %s, %s; weights SHA-256 %s", name, backbone.training, sha256)
        vit = build_vit(backbone)
        load_weights(vit, read_state_dict(file), f"{file} for {name}")
        return cls(backbone, vit, facet, center, sha256, precision, compiled).to(device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.pixel_mean.device

    def features(self, images: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Features of images as ``resize_image`` gives them.

        Args:
            images: N of (H * patch, W * patch, 3) uint8 RGB, all of one size.

        Returns:
            N of (C, H, W) raw float32 on the CPU.
        """
        return self.launch(images)()

    def launch(self, images: Sequence[np.ndarray]) -> Callable[[], list[torch.Tensor]]:
        """Start on images; the function returned waits and gives what ``features`` gives.

        On a GPU the whole batch goes through the network at once, and copies and network run
        beside the caller. On a CPU, where a batch is no faster, images go one by one before this
        returns, so that no bit of an image's features depends on its neighbours.
        """
        if self.device.type != "cuda":
            found = [self(self.normalise(torch.from_numpy(image)[None]))[0] for image in images]
            return lambda: [features.cpu() for features in found]
        batch = list(images)
        if self.compiled:  # another number of images would be compiled anew
            self._largest_batch = max(self._largest_batch, len(batch))
            batch += batch[-1:] * (self._largest_batch - len(batch))
        found = self(self.normalise(torch.from_numpy(np.stack(batch)).pin_memory()))
        here = torch.empty(found.shape, pin_memory=True).copy_(found, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self.device))

        def wait() -> list[torch.Tensor]:
            copied.synchronize()
            return list(here[: len(images)])

        return wait

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Bring images to the device, as bytes, and there to the network's scale.

        Args:
            images: (N, h, w, 3) uint8 RGB.

        Returns:
            (N, 3, h, w) float32 on the extractor's device, channels last in memory.
        """
        pixels = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        return (pixels - self.pixel_mean) / self.pixel_std

    @torch.no_grad()  # the compiler cannot do with inference_mode
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features of normalised images.

        Args:
            images: (N, 3, H * patch, W * patch) float32, see ``normalise``.

        Returns:
            (N, C, H, W) raw float32 features, minus their mean over H and W if ``center``.

        Raises:
            ValueError: the sides are no multiples of the patch.
        """
        reduced = self.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=reduced):
            features = self.facets(images, (self.facet,))[self.facet]
        if self.center:
            features = features - features.mean(dim=(2, 3), keepdim=True)
        return features

    def facets(self, images: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Several facets of one pass, uncentred.

        Args:
            images: (N, 3, H * patch, W * patch) float32.
            names: out of ``FACETS``.

        Returns:
            For each name (N, C, H, W) float32.
        """
        patch, vit = self.backbone.patch, self.vit
        if images.shape[2] % patch or images.shape[3] % patch:
            raise ValueError(f"image sides {tuple(images.shape[2:])} are no multiples of {patch}")
        height, width = images.shape[2] // patch, images.shape[3] // patch
        prefix = self.backbone.prefix_tokens

        x = self._embed(images, height, width)
        for block in vit.blocks[:-1]:
            x = block(x)
        last = vit.blocks[-1]

        def to_map(tokens: torch.Tensor) -> torch.Tensor:
            return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width).float()

        found = {}
        wanted = [name for name in names if name != "token"]
        if wanted:
            normed = last.norm1(x[:, prefix:])
            qkv = last.attn.qkv
            for name in wanted:  # rows of the weight: queries, keys, values
                third = FACETS.index(name)
                width_ = qkv.in_features
                rows = slice(third * width_, (third + 1) * width_)
                bias = None if qkv.bias is None else qkv.bias[rows]
                found[name] = to_map(F.linear(normed, qkv.weight[rows], bias))
        if "token" in names:
            found["token"] = to_map(vit.norm(last(x))[:, prefix:])
        return found

    def _embed(self, images: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Patch, prefix and position embeddings: (N, T, C)."""
        vit, prefix = self.vit, self.backbone.prefix_tokens
        patches = vit.patch_embed.proj(images).flatten(2).transpose(1, 2)
        positions = resample_position_embedding(vit.pos_embed[:, prefix:], height, width)
        first = (vit.cls_token + vit.pos_embed[:, :prefix]).expand(len(images), -1, -1)
        return torch.cat([first, patches + positions], dim=1)


def check_device(device: str | torch.device) -> None:
    """Raise a ``UserError`` unless tensors can be made on the device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter without CUDA in torch
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the device {str(device)!r} cannot be used: {reason}; the CPU always can: cpu"
        ) from error


def build_vit(backbone: Backbone) -> nn.Module:
    """Timm's model for an entry, with random weights and no classifier."""
    return timm.create_model(backbone.architecture, pretrained=False, num_classes=0)


def load_weights(vit: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Load a state dict in which every key must find its place.

    Args:
        vit: timm's model.
        state: name to tensor.
        source: named in the message.

    Raises:
        WeightsError: keys are missing or left over, or shapes differ; the first few are named.
    """
    state = {key: value for key, value in state.items() if key not in _UNUSED_KEYS}
    own = vit.state_dict()
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is unknown" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(f"{source}: these weights do not fit: {'; '.join(problems[:3])}{more}")
    vit.load_state_dict(state)
