"""LoRA: a frozen network is tuned by a product of two thin matrices a layer (Hu et al. 2021, 4.1).

Shape letters: I inputs and O outputs of a layer, R rank.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from promerge_d2.utils.errors import UserError

LAYERS = ("qkv", "proj")  # of every block's attention


class LowRank(nn.Module):
    """A weight (O, I) plus ``alpha / rank * up @ down``, of which only the two matrices are here.

    ``up`` (O, R) starts at zero, and so the sum is the weight itself; ``down`` (R, I) starts as
    torch has a linear layer start.
    """

    def __init__(self, outputs: int, inputs: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.scale = alpha / rank

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The tuned weight (O, I)."""
        return weight + self.scale * (self.up @ self.down)


class TunedLinear(nn.Module):
    """A linear layer with a tuned weight.

    The weights are summed, not the outputs of two layers: some attentions of timm take
    ``qkv.weight`` and never call the layer.
    """

    def __init__(self, layer: nn.Linear, low_rank: LowRank) -> None:
        super().__init__()
        self.layer = layer
        self.low_rank = low_rank
        self.in_features = layer.in_features

    @property
    def weight(self) -> torch.Tensor:
        """(O, I), as it is now."""
        return self.low_rank(self.layer.weight)

    @property
    def bias(self) -> torch.Tensor | None:
        """(O,), never tuned."""
        return self.layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., I) to (..., O)."""
        return F.linear(x, self.weight, self.bias)


def add_lora(vit: nn.Module, rank: int, alpha: float) -> nn.ModuleDict:
    """Tune the projections to queries, keys and values and the one after attention, in every block.

    Args:
        vit: timm's model, frozen; changed in place.
        rank: R, above 0.
        alpha: how much the product counts: it is multiplied by ``alpha / rank``.

    Returns:
        The matrices, by block and layer (``"0_qkv"``, ...), to be trained and saved.

    Raises:
        UserError: the network has no attention, or the rank is below 1.
    """
    if rank < 1:
        raise UserError(f"MODEL.FROZEN_VIT.LORA.RANK is 0 (no LoRA) or more, not {rank}")
    if not hasattr(vit, "blocks"):
        raise UserError(
            "LoRA tunes a ViT's attention, and this backbone has none: set "
            "MODEL.FROZEN_VIT.LORA.RANK 0"
        )
    added = nn.ModuleDict()
    for number, block in enumerate(vit.blocks):
        for name in LAYERS:
            layer = getattr(block.attn, name)
            low_rank = LowRank(*layer.weight.shape, rank, alpha)
            setattr(block.attn, name, TunedLinear(layer, low_rank))
            added[f"{number}_{name}"] = low_rank
    return added
