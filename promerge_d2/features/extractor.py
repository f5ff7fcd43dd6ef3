"""Images to patch features.

Shape letters: N images, C channels, H and W rows and columns of the patch grid, T tokens
(prefix tokens first, then the H * W patches row by row).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.models.beit import gen_relative_position_index
from torch import nn

from promerge_d2.features.checkpoints import describe_misfits, to_timm
from promerge_d2.features.registry import Backbone, get_backbone
from promerge_d2.features.weights import WeightsError, find_weights, read_state_dict
from promerge_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

FACETS = ("query", "key", "value", "token")
PRECISIONS = ("fp32", "bf16")


def resample_position_embedding(
    embedding: torch.Tensor, height: int, width: int, how: str = "offset"
) -> torch.Tensor:
    """Resample a square grid of position embeddings: bicubic, ``align_corners=False``.

    Args:
        embedding: (1, side * side, C) float, patches row by row.
        height: rows H of the wanted grid.
        width: columns W of the wanted grid.
        how: ``"offset"`` samples by the scale factors ``(height + 0.1) / side`` and
            ``(width + 0.1) / side``, as DINO, iBOT and DINOv2 do (a target size would give another
            map); ``"size"`` by the target size, as MAE does; ``"antialias"`` likewise, with
            antialiasing, as DINOv2 with registers does.

    Returns:
        (1, H * W, C).
    """
    side = round(embedding.shape[1] ** 0.5)
    if (height, width) == (side, side):
        return embedding
    grid = embedding.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    target: dict[str, Any]
    if how == "offset":
        target = {"scale_factor": ((height + 0.1) / side, (width + 0.1) / side)}
    else:
        target = {"size": (height, width)}
    grid = F.interpolate(
        grid, **target, mode="bicubic", align_corners=False, antialias=how == "antialias"
    )
    assert grid.shape[2:] == (height, width)
    return grid.flatten(2).transpose(1, 2)


def relative_position_bias(table: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Spread BEiT's bias of attention to any grid.

    Each distance on a smaller grid keeps its bias. For a larger one the distances of the training
    are spread in steps that grow by a constant factor, so that near ones almost keep theirs (as
    BEiT's fine-tuning does); between them the bias is linear (as in timm; BEiT's own is cubic).

    Args:
        table: ((2 * side - 1)**2 + 3, heads) float: a bias for each distance on the square grid of
            the training, rows first, and three for the class token.
        height: rows H of the wanted grid.
        width: columns W of the wanted grid.

    Returns:
        (heads, T, T), T being 1 + H * W: 0.6 GB for 12 heads and a grid of 60 by 60.
    """
    distances = math.isqrt(len(table) - 3)
    rows, columns = (
        torch.from_numpy(_spread((distances + 1) // 2, size)).to(table) for size in (height, width)
    )
    square = table[:-3].unflatten(0, (distances, distances))
    spread = torch.einsum("yr,xc,rch->yxh", rows, columns, square).flatten(0, 1)
    index = gen_relative_position_index((height, width), device=table.device)
    return torch.cat([spread, table[-3:]]).T[:, index]


def _spread(side: int, size: int) -> np.ndarray:
    """Return (2 * size - 1, 2 * side - 1) weights of the training's distances, one axis."""
    low, high = 1.0, 2.0
    while high - low > 1e-9:
        factor = (low + high) / 2
        if np.sum(factor ** np.arange(side - 1)) > size - 1:
            high = factor
        else:
            low = factor
    steps = np.cumsum(low ** np.arange(side - 1))
    known = np.concatenate([-steps[::-1], [0], steps])
    wanted = np.arange(1 - size, size)
    return np.stack([np.interp(wanted, known, row) for row in np.eye(len(known))], axis=1)


class FeatureExtractor(nn.Module):
    """A frozen network that gives one feature a patch.

    The default facet of a ViT is the key of the last block, as ProMerge uses (paper, section 3);
    the last block is computed only as far as the facets asked for need it.

    Args:
        backbone: the registry's entry.
        vit: timm's model of ``backbone.architecture``, weights loaded.
        facet: ``"key"``, ``"query"``, ``"value"`` (all heads side by side, before attention and
            before rotation by position) or ``"token"`` (the block's output after the final
            LayerNorm; a ResNet's last stage); None takes the entry's default.
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
        facet: str | None = None,
        center: bool | None = None,
        weights_sha256: str | None = None,
        precision: str = "fp32",
        compiled: bool = False,
    ) -> None:
        super().__init__()
        facet = facet or backbone.facets[0]
        check_facet(backbone, facet)
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
        self.register_buffer("pixel_mean", torch.tensor(backbone.pixel_mean).view(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(backbone.pixel_std).view(3, 1, 1), False)
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
        facet: str | None = None,
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

        Returns:
            The extractor, on the device.

        Raises:
            UserError: unknown name, facet or precision, a facet that the backbone lacks, a device
                that cannot be used, or weights that are missing or wrong.
        """
        backbone = get_backbone(name)
        check_facet(backbone, facet or backbone.facets[0])  # before the weights are fetched
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
        """Compute the features of images as ``resize_image`` gives them.

        Args:
            images: N of (H * patch, W * patch, 3) uint8 RGB, all of one size.

        Returns:
            N of (C, H, W) raw float32 on the CPU.
        """
        return self.start(images)()

    def start(self, images: Sequence[np.ndarray]) -> Callable[[], list[torch.Tensor]]:
        """Start on images, and return at once on a GPU.

        On a GPU the batch goes through the network at once, beside the caller. On a CPU, where a
        batch is no faster, images go one by one before this returns, so that no bit of an image's
        features depends on its neighbours.

        Args:
            images: as of ``features``.

        Returns:
            A function that waits and gives what ``features`` gives.
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
        """Compute the features of normalised images.

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
        """Compute several facets in one pass, uncentred.

        Args:
            images: (N, 3, H * patch, W * patch) float32.
            names: out of ``FACETS``.

        Returns:
            For each name (N, C, H, W) float32.

        Raises:
            UserError: the network has no such facet.
        """
        patch, vit = self.backbone.patch, self.vit
        for name in names:
            check_facet(self.backbone, name)
        if images.shape[2] % patch or images.shape[3] % patch:
            raise ValueError(f"image sides {tuple(images.shape[2:])} are no multiples of {patch}")
        if isinstance(vit, timm.models.ResNet):
            return {name: vit.forward_features(images).float() for name in names}
        height, width = images.shape[2] // patch, images.shape[3] // patch
        prefix = self.backbone.prefix_tokens

        x = self.embed(images, height, width)
        positions = self._positions(height, width)
        for block in vit.blocks[:-1]:
            x = block(x, **positions)
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
                if qkv.bias is None:  # BEiT and DINOv3 keep it apart
                    bias = getattr(last.attn, f"{name[0]}_bias", None)
                else:
                    bias = qkv.bias[rows]
                found[name] = to_map(F.linear(normed, qkv.weight[rows], bias))
        if "token" in names:
            found["token"] = to_map(vit.norm(last(x, **positions))[:, prefix:])
        return found

    def embed(self, images: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Embed images as tokens with their positions: what the first block takes.

        Args:
            images: (N, 3, H * patch, W * patch) float32, see ``normalise``.
            height: rows H of the patch grid.
            width: its columns W.

        Returns:
            (N, T, C) float32.
        """
        vit = self.vit
        patches = vit.patch_embed.proj(images).flatten(2).transpose(1, 2)
        first = vit.cls_token
        if getattr(vit, "reg_token", None) is not None:
            first = torch.cat([first, vit.reg_token], dim=1)
        if vit.pos_embed is not None:
            embedded = 0 if vit.no_embed_class else first.shape[1]  # prefix tokens with a position
            patches = patches + resample_position_embedding(
                vit.pos_embed[:, embedded:], height, width, self.backbone.resampling
            )
            if embedded:
                first = first + vit.pos_embed[:, :embedded]
        return torch.cat([first.expand(len(images), -1, -1), patches], dim=1)

    def _positions(self, height: int, width: int) -> dict[str, torch.Tensor]:
        """Return what attention must know of the grid, as the blocks take it."""
        if getattr(self.vit, "rope", None) is not None:
            return {"rope": self.vit.rope.get_embed([height, width])}
        if getattr(self.vit, "rel_pos_bias", None) is not None:
            table = self.vit.rel_pos_bias.relative_position_bias_table
            return {"shared_rel_pos_bias": relative_position_bias(table, height, width)}
        return {}


def check_facet(backbone: Backbone, facet: str) -> None:
    """Check that a backbone has a facet.

    Args:
        backbone: the registry's entry.
        facet: a name of ``FACETS``.

    Raises:
        UserError: there is no such facet, or this backbone has not got it.
    """
    if facet not in FACETS:
        raise UserError(f"no facet is named {facet!r}; known: {', '.join(FACETS)}")
    if facet not in backbone.facets:
        raise UserError(
            f"{backbone.name} has no facet {facet!r}: a network without attention has no queries, "
            f"keys and values; choose --facet {backbone.facets[0]}, its last stage"
        )


def check_device(device: str | torch.device) -> None:
    """Check that tensors can be made on a device.

    Args:
        device: as torch takes it.

    Raises:
        UserError: they cannot; with torch's reason.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter without CUDA in torch
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the device {str(device)!r} cannot be used: {reason}; the CPU always can: cpu"
        ) from error


def build_vit(backbone: Backbone) -> nn.Module:
    """Build timm's model for an entry, with random weights and no classifier.

    Args:
        backbone: the registry's entry.

    Returns:
        The model.
    """
    vit = timm.create_model(
        backbone.architecture, pretrained=False, num_classes=0, **backbone.options
    )
    if getattr(vit, "rope", None) is not None:
        # part of the state, because DINOv3's files hold them rounded to bfloat16
        vit.rope.register_buffer("periods", vit.rope.periods, persistent=True)
    return vit


def load_weights(vit: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Load a state dict in which every key must find its place.

    Args:
        vit: timm's model.
        state: name to tensor, in timm's or the official layout.
        source: named in the message.

    Raises:
        WeightsError: keys are missing or left over, or shapes differ; the first few are named.
    """
    state, own = to_timm(state), vit.state_dict()
    problems = describe_misfits(
        [key for key in own if key not in state],
        [key for key in state if key not in own],
        [
            (key, state[key].shape, own[key].shape)
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    )
    if problems:
        raise WeightsError(f"{source}: these weights do not fit: {problems}")
    vit.load_state_dict(state)
