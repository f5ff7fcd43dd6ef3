import json

import pytest
import torch

from tests.helpers import ROOT


@pytest.fixture
def options(photos, tmp_path):
    """Overrides that let the twin of the plain recipe train on four photos in seconds."""
    names = "[tiny_lazy]"
    return [
        *("train.device=cpu", "train.norm=BN", "train.init_checkpoint=''", "train.seed=1"),
        f"train.data_sets=[[tiny_lazy,{tmp_path / 'labels.json'},{photos}]]",
        f"train.output_dir={tmp_path / 'output'}",
        *("train.max_iter=3", "train.checkpoint_period=2", "train.precise_bn.num_iter=1"),
        *("dataloader.train.batch=2", "dataloader.train.num_workers=0"),
        f"dataloader.train.names={names}",
        "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
        *(f"dataloader.test.names={names}", "dataloader.test.num_workers=0"),
        "dataloader.test.mapper.augmentations.0.short_edge_length=64",
        "model.backbone.out_channels=16",
        *("model.proposal_generator.head.in_channels=16", "model.roi_heads.batch_size_per_image=8"),
        "model.proposal_generator.post_nms_topk=[40,10]",
        "model.roi_heads.box_head.input_shape.channels=16",
        "model.roi_heads.mask_head.input_shape.channels=16",
    ]


def test_training_going_on_and_evaluation(train_net, options, tmp_path, logged):
    file, output = ROOT / "configs" / "promerge_mask_rcnn.py", tmp_path / "output"
    assert train_net("--config", file, *options)[0] == 0
    whole = torch.load(output / "model_final.pth", weights_only=False)
    assert whole["iteration"] == 2
    assert {"droploss/kept_background", "loss_mask", "segm/AR100"} <= {
        name for line in logged() for name in line
    }
    (output / "last_checkpoint").write_text("model_0000001.pth")
    assert train_net("--config", file, "--resume", *options)[0] == 0
    again = torch.load(output / "model_final.pth", weights_only=False)
    assert all(torch.equal(value, again["model"][name]) for name, value in whole["model"].items())
    first = json.loads((output / "coco_instances_results.json").read_text())

    weights = f"train.init_checkpoint={output / 'model_final.pth'}"
    assert train_net("--config", file, "--eval-only", *options, weights)[0] == 0
    assert json.loads((output / "coco_instances_results.json").read_text()) == first


def test_refusals(train_net, options):
    file = ROOT / "configs" / "promerge_mask_rcnn.py"
    refused = {
        "train.norm=SyncBN": "error: SyncBN needs GPUs; on a CPU add: train.norm=BN\n",
        "train.init_checkpoint=gone.pth": "MODEL.WEIGHTS gone.pth",
        "dataloader.train.names=[gone]": "'gone'",
        "train.nrom=BN": "train.nrom",
        "train.max_iter=many": "train.max_iter is 'many'",
        "train.max_iter=0": "MAX_ITER is 0",
        "train.seed=null": "train.seed",
        "train.data_sets=5": "train.data_sets is 5",
        "dataloader.train.names=tiny_lazy": "dataloader.train.names is 'tiny_lazy'",
        "dataloader.test.names=[tiny_lazy,tiny_lazy]": "dataloader.test.names is",
        "train.norm=Nrom": "'Nrom'",
        "optimizer.lr=fast": "optimiser",
        "train.max_iter=[": "train.max_iter=[",
        "model.backbone.out_channels=0": "the first step",
        "model.roi_heads.box_head.input_shape.channels=7": "shapes cannot be multiplied",
    }
    for option, message in refused.items():
        code, out, err = train_net("--config", file, *options, option)
        assert code == 3, option
        assert sum(line.startswith("error: ") for line in err.splitlines()) == 1
        assert message in err
        assert "Traceback" not in out + err


@pytest.mark.parametrize("text", ["import gone_\n", "def (\n", "model = 1 / 0\n"])
def test_a_python_config_that_does_not_run(train_net, tmp_path, text):
    (tmp_path / "mine.py").write_text(text)
    code, _, err = train_net("--config", tmp_path / "mine.py")
    assert code == 3
    assert str(tmp_path / "mine.py") in err
    assert err.count("\n") == 1


def test_without_test_data_nothing_is_evaluated(train_net, options, tmp_path, logged):
    file = ROOT / "configs" / "promerge_mask_rcnn.py"
    assert train_net("--config", file, *options, "dataloader.test.names=[]")[0] == 0
    assert not any(name.startswith("segm/") for line in logged() for name in line)
