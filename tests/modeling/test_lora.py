import pickle

import pytest
import torch
from timm.models.eva import EvaAttention
from torch import nn

from promerge_d2.modeling import FrozenViT
from promerge_d2.modeling.lora import LowRank, TunedLinear, add_lora
from promerge_d2.utils.errors import UserError
from tests.modeling.test_frozen_vit import extractor, images


def tuned(rank=2, alpha=4.0):
    source = extractor()
    return FrozenViT(source, lora=add_lora(source.vit, rank, alpha))


def randomise(backbone, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for matrix in backbone.parameters():
            matrix.copy_(torch.randn(matrix.shape, generator=generator) / 4)


def test_a_rank_of_one_by_hand():
    low_rank = LowRank(outputs=2, inputs=3, rank=1, alpha=0.5)
    with torch.no_grad():
        low_rank.down.copy_(torch.tensor([[1.0, 2.0, 0.0]]))
        low_rank.up.copy_(torch.tensor([[4.0], [-2.0]]))
    weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 5.0]])
    assert low_rank(weight).tolist() == [[3.0, 4.0, 0.0], [-1.0, -1.0, 5.0]]


def test_alpha_counts_by_the_rank():
    low_rank = LowRank(2, 2, rank=4, alpha=2.0)
    nn.init.ones_(low_rank.up)
    nn.init.ones_(low_rank.down)
    assert low_rank(torch.zeros(2, 2)).tolist() == [[2.0, 2.0]] * 2  # 2 / 4 of a sum of 4 ones


def test_at_the_start_the_tokens_are_the_frozen_ones_to_the_bit():
    frozen = FrozenViT(extractor())(images())["tokens"]
    backbone = tuned()
    found = backbone(images())["tokens"]
    assert found.requires_grad
    assert torch.equal(found, frozen)
    randomise(backbone)
    assert not torch.allclose(backbone(images())["tokens"], frozen, atol=0.01)


def test_gradients_reach_the_matrices_and_nothing_else():
    backbone = tuned()
    randomise(backbone)
    names = {name for name, _ in backbone.named_parameters()}
    assert names == {
        f"lora.{block}_{layer}.{matrix}"
        for block in (0, 1)
        for layer in ("qkv", "proj")
        for matrix in ("down", "up")
    }
    assert sum(p.numel() for p in backbone.parameters()) == 2 * 2 * ((16 + 48) + (16 + 16))
    weights = {
        name: p for name, p in backbone.extractor.vit.named_parameters() if "low_" not in name
    }
    assert len(weights) > 20
    before = {name: p.clone() for name, p in weights.items()}
    optimiser = torch.optim.SGD(backbone.parameters(), lr=1.0)
    backbone(images())["tokens"].square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in backbone.parameters())
    optimiser.step()
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in weights.items())


def test_only_the_matrices_are_saved_and_they_come_back():
    backbone = tuned()
    randomise(backbone)
    state = backbone.state_dict()
    assert set(state) == {"network", *(name for name, _ in backbone.named_parameters())}
    other = tuned()
    wanted = backbone(images())["tokens"]
    assert not torch.equal(other(images())["tokens"], wanted)
    other.load_state_dict(state)
    assert torch.equal(other(images())["tokens"], wanted)


def test_no_gradient_is_kept_when_none_is_wanted():
    backbone = tuned()
    with torch.no_grad():
        assert not backbone(images())["tokens"].requires_grad


def test_workers_get_a_tuned_copy():
    backbone = tuned()
    randomise(backbone)
    copy = pickle.loads(pickle.dumps(backbone))
    assert torch.equal(copy(images())["tokens"], backbone(images())["tokens"])
    assert copy.lora["0_qkv"] is copy.extractor.vit.blocks[0].attn.qkv.low_rank


def test_the_vit_follows_to():
    backbone = tuned().to(torch.float64)
    vit = backbone.extractor.vit
    assert {p.dtype for p in (*vit.parameters(), *backbone.parameters())} == {torch.float64}
    assert backbone.lora["1_proj"] is vit.blocks[1].attn.proj.low_rank
    assert backbone.lora["1_proj"].up is vit.blocks[1].attn.proj.low_rank.up


@pytest.mark.parametrize("bias", [True, False])
def test_an_attention_that_takes_the_weight_itself_is_tuned_too(bias):
    attention = EvaAttention(8, num_heads=2, qkv_bias=bias, scale_norm=False)  # DINOv3's
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    before = attention(x)
    low_rank = LowRank(*attention.qkv.weight.shape, rank=2, alpha=2.0)
    attention.qkv = TunedLinear(attention.qkv, low_rank)
    assert torch.equal(attention(x), before)
    nn.init.ones_(low_rank.up)
    assert not torch.allclose(attention(x), before)


@pytest.mark.parametrize(
    ("network", "rank", "message"),
    [
        (nn.Module(), 2, "this backbone has none: set MODEL.FROZEN_VIT.LORA.RANK 0"),
        (nn.Module(), -1, r"LORA\.RANK is 0 \(no LoRA\) or more, not -1"),
    ],
)
def test_refused(network, rank, message):
    with pytest.raises(UserError, match=message):
        add_lora(network, rank, 1.0)
