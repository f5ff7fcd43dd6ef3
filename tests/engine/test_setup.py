import argparse
import logging

import pytest
import torch

import promerge_d2.engine
from promerge_d2.engine.setup import check_device, check_labels, read_config
from promerge_d2.utils.errors import UserError
from tests.helpers import ROOT

CASCADE = str(ROOT / "configs" / "promerge_cascade.yaml")
ON_CPU = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN"),
    *("SOLVER.AMP.ENABLED", "False"),
]


def refused(outcome, *messages):
    code, out, err = outcome
    assert code == 3
    assert "Traceback" not in out + err
    for message in messages:
        assert message in err
    return err


# The command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config"], "--config"),
        (["--num-gpus", "many"], "'many'"),
        (["--evaluate-only"], "--evaluate-only"),
        ([], "--config promerge_cascade.yaml"),
        (["--config", "gone.yaml"], "gone.yaml"),
        (["--config", CASCADE, "SOLVER.MAX_ITER"], "'SOLVER.MAX_ITER'"),
    ],
)
def test_bad_command_lines(train_net, arguments, message):
    refused(train_net(*arguments), message)


def test_config_is_config_file(train_net, monkeypatch):
    seen = []

    def setup(args):
        seen.append(args)
        raise UserError("far enough")

    monkeypatch.setattr("promerge_d2.cli.train.setup", setup)
    for option in ("--config", "--config-file"):
        command = [option, "some.yaml", "--resume", "SOLVER.BASE_LR", "0.1"]
        refused(train_net(*command), "error: far enough\n")
    assert seen[0] == seen[1]
    assert seen[0].config_file == "some.yaml"
    assert seen[0].resume is True
    assert seen[0].eval_only is False
    assert seen[0].opts == ["SOLVER.BASE_LR", "0.1"]


# Keys


def test_a_misspelt_key_in_the_file(train_net, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("MODEL:\n  ROI_HEADS:\n    DROPLOS_IOU_THRESH: 0.1\n")
    refused(
        train_net("--config", file),
        "MODEL.ROI_HEADS.DROPLOS_IOU_THRESH",
        "MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH",
    )


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("SOLVER.MAX_ITR", "SOLVER.MAX_ITER"),
        ("INPUT.COPYPASTE.RATE", "INPUT.COPY_PASTE.RATE"),
        ("MODL.DEVICE", "MODEL.DEVICE"),
    ],
)
def test_a_misspelt_key_on_the_command_line(train_net, key, near):
    refused(train_net("--config", CASCADE, key, "1"), key, near)


def test_a_key_like_no_other(train_net):
    err = refused(train_net("--config", CASCADE, "QQQQQQQQ", "1"))
    assert err.strip().endswith("QQQQQQQQ")  # nothing is near


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER:\n  MAX_ITER: many\n", "SOLVER.MAX_ITER"),
        ("SOLVER: [1\n", "expected ',' or ']'"),
        ("", "c.yaml"),
        ("_BASE_: gone.yaml\n", "gone.yaml"),
    ],
)
def test_broken_config_files(train_net, tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    refused(train_net("--config", tmp_path / "c.yaml"), "c.yaml", message)


def test_a_value_of_another_type(train_net):
    refused(train_net("--config", CASCADE, "SOLVER.MAX_ITER", "soon"), "SOLVER.MAX_ITER")


def test_options_beat_the_file():
    cfg = read_config(CASCADE, ["SOLVER.BASE_LR", "0.5", "DATASETS.TRAIN", "('a','b')"])
    assert cfg.SOLVER.BASE_LR == 0.5
    assert cfg.DATASETS.TRAIN == ("a", "b")
    assert cfg.SOLVER.MAX_ITER == 160_000


# Data sets and weights


def test_a_data_set_that_is_not_registered(train_net, config):
    refused(
        train_net("--config", config(**{"DATASETS.TRAIN": ["tiny_foto"]})),
        "'tiny_foto'",
        "tiny_photos",
        'DATASETS.PROMERGE \'[["tiny_foto", ',
    )


def test_all_that_the_cascade_misses_is_in_one_message(train_net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    err = refused(train_net("--config", CASCADE, *ON_CPU))
    weights, coco, imagenet = err.removeprefix("error: ").splitlines()
    assert "MODEL.WEIGHTS weights/dino_resnet50_d2.pkl" in weights
    assert "promerge convert-dino-resnet --output weights/dino_resnet50_d2.pkl" in weights
    assert "'cls_agnostic_coco'" in coco
    assert "instances_val2017.json" in coco
    assert "python datasets/prepare_coco.py" in coco
    assert "'imagenet_promerge_train'" in imagenet
    assert "promerge label --preset release $DETECTRON2_DATASETS/imagenet/train" in imagenet
    assert not (tmp_path / "output").exists()


def test_evaluation_does_not_ask_for_training_data(train_net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    err = refused(train_net("--config", CASCADE, "--eval-only", *ON_CPU))
    assert "cls_agnostic_coco" in err
    assert "imagenet_promerge_train" not in err


def test_missing_labels_of_your_own(train_net, config, tmp_path):
    file = config()
    (tmp_path / "labels.json").unlink()
    refused(
        train_net("--config", file),
        f"'tiny_photos' needs {tmp_path / 'labels.json'}",
        f"promerge label --preset release {tmp_path / 'photos'} --output ",
    )


def test_other_missing_weights(train_net, config, tmp_path):
    weights = tmp_path / "gone.pth"
    refused(train_net("--config", config(), "MODEL.WEIGHTS", weights), f"MODEL.WEIGHTS {weights}")


def test_evaluation_needs_weights(train_net, config):
    refused(
        train_net("--config", config(), "--eval-only"),
        "MODEL.WEIGHTS",
    )


def test_missing_weights_of_the_frozen_vit(train_net, config, tmp_path):
    file = config(**{"MODEL.FROZEN_VIT.BACKBONE": "tyny"})
    refused(train_net("--config", file), "'tyny'", "tiny")
    file = config()
    (tmp_path / "tiny.pth").unlink()
    refused(train_net("--config", file), str(tmp_path / "tiny.pth"))


# The machine


def test_a_gpu_that_is_not_there(train_net, config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(
        train_net("--config", config(), "MODEL.DEVICE", "cuda"),
        "MODEL.DEVICE is cuda",
        "MODEL.DEVICE cpu MODEL.RESNETS.NORM BN MODEL.FPN.NORM BN SOLVER.AMP.ENABLED False",
    )


def test_the_line_for_the_cpu_works():
    line = promerge_d2.engine.setup.__globals__["CPU_LINE"]
    cfg = read_config(CASCADE, line.split())
    before = cfg.dump()
    check_device(cfg)
    assert cfg.dump() == before


@pytest.mark.parametrize(
    ("norms", "wanted"),
    [
        (["MODEL.FPN.NORM", "BN"], "MODEL.RESNETS.NORM BN"),
        (["MODEL.RESNETS.NORM", "BN"], "MODEL.FPN.NORM BN"),
        ([], "MODEL.FPN.NORM BN MODEL.RESNETS.NORM BN"),
    ],
)
def test_synced_norms_on_a_cpu(train_net, norms, wanted):
    outcome = train_net("--config", CASCADE, "MODEL.DEVICE", "cpu", *norms)
    assert refused(outcome, "SyncBN").strip().endswith(f": {wanted}")


def test_mixed_precision_on_a_cpu_is_switched_off_with_one_warning(config, caplog):
    arguments = argparse.Namespace(
        config_file=str(config(**{"SOLVER.AMP.ENABLED": True})),
        opts=[],
        eval_only=False,
        resume=False,
    )
    with caplog.at_level(logging.WARNING):
        cfg = promerge_d2.engine.setup(arguments)
    assert cfg.SOLVER.AMP.ENABLED is False
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("promerge_d2")]
    assert len(warnings) == 1
    assert "SOLVER.AMP.ENABLED" in warnings[0]


def test_a_gpu_keeps_mixed_precision_and_synced_norms(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = read_config(CASCADE, [])
    before = cfg.dump()
    check_device(cfg)
    assert cfg.dump() == before
    assert caplog.records == []


# Masks


def test_polygons_are_refused(train_net, config):
    refused(
        train_net("--config", config(), "INPUT.MASK_FORMAT", "polygon"),
        "INPUT.MASK_FORMAT bitmask",
    )


def test_copy_paste_without_masks_is_refused(train_net, config):
    refused(
        train_net("--config", config(), "MODEL.MASK_ON", "False"),
        "MODEL.MASK_ON True",
        "INPUT.COPY_PASTE.ENABLED False",
    )


HEADS = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH", "-1.0"]
LABELS = "INPUT.PSEUDO_LABELS."


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (
            HEADS[:2],
            ["ROI_HEADS.NAME CascadeROIHeads", "MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH -1.0"],
        ),
        (
            [*HEADS, LABELS + "IGNORE_REST", "True", LABELS + "SOFT_POWER", "1.0"],
            [
                "IGNORE_REST does nothing with MODEL.ROI_HEADS.NAME CascadeROIHeads",
                "SOFT_POWER does nothing with MODEL.ROI_HEADS.NAME CascadeROIHeads",
            ],
        ),
        (
            ["MODEL.PROPOSAL_GENERATOR.NAME", "RPN", LABELS + "IGNORE_REST", "True"],
            ["with MODEL.PROPOSAL_GENERATOR.NAME RPN: set it to IgnoringRPN"],
        ),
        (
            [
                *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
                *(LABELS + "WEIGHT_POWER", "1.0"),
            ],
            ["with MODEL.ROI_MASK_HEAD.NAME MaskRCNNConvUpsampleHead: set it to WeightedMaskHead"],
        ),
        (
            ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True"],
            ["has a softmax: set MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE False"],
        ),
    ],
)
def test_options_that_the_heads_would_pass_over(train_net, config, options, messages):
    refused(train_net("--config", config(), *options), *messages)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.MAX_ITER", "0"),
        ("SOLVER.CHECKPOINT_PERIOD", "0"),
        ("SEED", str(2**40)),
        ("INPUT.MIN_SIZE_TRAIN", "()"),
        ("INPUT.MIN_SIZE_TRAIN", "(-1,)"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "other"),
        ("INPUT.MAX_SIZE_TRAIN", "0"),
        ("INPUT.MAX_SIZE_TEST", "-1"),
        ("INPUT.MIN_SIZE_TEST", "-1"),
        ("MODEL.FPN.OUT_CHANNELS", "0"),
        ("MODEL.ROI_MASK_HEAD.CONV_DIM", "0"),
        ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "0"),
        ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "0"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", "0"),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "l3"),
        ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "l3"),
        ("TEST.EXPECTED_RESULTS", "[5]"),
        ("TEST.EXPECTED_RESULTS", "[['bbox', 'AP']]"),
        ("TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 'high', 1]]"),
        ("TEST.EXPECTED_RESULTS", "[['boxes', 'AP', 1, 1]]"),
        ("DATASETS.PROMERGE", "[['a', 3, 4]]"),
    ],
)
def test_values_that_cannot_be(train_net, config, key, value):
    refused(train_net("--config", config(), key, value), key)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("MODEL.FPN.OUT_CHANNELS", "50", "num_channels (50)"),
        ("MODEL.RPN.IN_FEATURES", "('p2','p3')", "'p2'"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[16],[32]]", "anchor"),
        ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "(0.5,)", "cascade_bbox_reg_weights"),
        ("MODEL.FPN.NORM", "Nrom", "'Nrom'"),
        ("MODEL.BACKBONE.NAME", "nope", "'nope'"),
        ("SOLVER.BASE_LR", "-1.0", "-1.0"),
        ("SOLVER.LR_SCHEDULER_NAME", "Never", "Never"),
        ("SOLVER.REFERENCE_WORLD_SIZE", "8", "SOLVER.REFERENCE_WORLD_SIZE"),
        ("INPUT.RANDOM_FLIP", "sometimes", "horiz"),
        ("DATALOADER.NUM_WORKERS", "-1", "num_workers"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[0],[0],[0]]", "the first step"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[]]", "the first step"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "the first step"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(train_net, config, key, value, named):
    code, out, err = train_net("--config", config(), key, value)
    assert code == 3
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert named in line
    assert "Traceback" not in out + err


def test_an_image_that_is_gone_is_said_in_one_line(train_net, config, photos):
    for number in range(4):
        (photos / f"{number}.png").unlink()
    refused(train_net("--config", config()), str(photos))


@pytest.mark.parametrize("names", ["()", "('tiny_photos', 'tiny_photos')"])
def test_expected_results_are_of_one_data_set(train_net, config, names):
    expected = ["TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 1, 1]]"]
    refused(train_net("--config", config(), *expected, "DATASETS.TEST", names), "DATASETS.TEST")


def test_an_output_folder_that_cannot_be_made(train_net, config, photos):
    refused(train_net("--config", config(), "OUTPUT_DIR", photos / "0.png"), str(photos / "0.png"))


@pytest.mark.parametrize("steps", [[2], [3, 1], [2, 9]])
def test_steps_that_are_never_reached_are_dropped(configured, steps):
    cfg = configured(**{"SOLVER.MAX_ITER": 2, "SOLVER.STEPS": steps})
    assert list(cfg.SOLVER.STEPS) == [step for step in steps if step < 2]


def test_plain_heads_are_allowed():
    cfg = read_config(CASCADE, HEADS)
    check_labels(cfg)
    assert cfg.MODEL.ROI_HEADS.NAME == "CascadeROIHeads"


def test_settings_are_frozen_and_kept(config, tmp_path):
    arguments = argparse.Namespace(
        config_file=str(config()), opts=[], eval_only=False, resume=False
    )
    cfg = promerge_d2.engine.setup(arguments)
    assert cfg.is_frozen()
    assert (tmp_path / "output" / "config.yaml").read_text() == cfg.dump()
    assert (tmp_path / "output" / "log.txt").is_file()


def test_a_resumed_run_does_not_need_its_start_weights(config, tmp_path):
    gone = tmp_path / "gone.pth"
    arguments = argparse.Namespace(
        config_file=str(config(**{"MODEL.WEIGHTS": str(gone)})),
        opts=["OUTPUT_DIR", str(tmp_path / "run")],
        eval_only=False,
        resume=True,
    )
    with pytest.raises(UserError, match=r"gone\.pth"):  # nothing to go on with yet
        promerge_d2.engine.setup(arguments)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000001.pth")
    assert str(gone) == promerge_d2.engine.setup(arguments).MODEL.WEIGHTS
