"""A tiny registered network for the labelers' tests."""

import pytest
import timm
import torch

from promerge_d2.features import BACKBONES, Backbone


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A registered ViT-Ti/16 with random weights in a file."""
    name = "test_random_vit"
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    file = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(vit.state_dict(), file)
    with pytest.MonkeyPatch.context() as patch:
        entry = Backbone(
            name=name,
            architecture="vit_tiny_patch16_224",
            patch=16,
            width=192,
            center=True,
            training="none: random",
            licence="none",
            commercial_use=True,
        )
        patch.setitem(BACKBONES, name, entry)
        yield name, file
