import collections
import itertools
import json
import math
import multiprocessing
import os
import signal

import cv2
import numpy as np
import pytest
import torch

import promerge_d2
from promerge_d2.coco.records import mask_record
from promerge_d2.data import CopyPasteMapper
from promerge_d2.data.mapper import CROWD, LEFT_OUT, TARGET, LabelMapper
from promerge_d2.engine import ProMergeTrainer
from promerge_d2.engine.trainer import PreciseBN
from promerge_d2.modeling import DropLossOutputLayers
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import ImageError, load_image
from tests.engine.spawned import prepare
from tests.helpers import coco_json, exif_of, photo, save_image, square, stored_pixels

# The whole way


@pytest.fixture
def starts(monkeypatch):
    """The iteration at which every training starts."""
    found = []
    real = ProMergeTrainer.train

    def train(self):
        found.append(self.start_iter)
        return real(self)

    monkeypatch.setattr(ProMergeTrainer, "train", train)
    return found


def iteration_of(file):
    return torch.load(file, map_location="cpu", weights_only=False)["iteration"]


def test_training_going_on_and_evaluation(train_net, config, tmp_path, evaluations, logged, starts):
    file, output = config(), tmp_path / "output"
    code, out, _ = train_net("--config", file)
    assert code == 0, out
    assert starts == [0]
    assert iteration_of(output / "model_final.pth") == 2  # of 0, 1, 2
    (line,) = (line for line in out.splitlines() if line.startswith("look at detections:"))
    assert f"--config {output}/config.yaml " in line
    assert line.endswith(f" MODEL.WEIGHTS {output}/model_final.pth")
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    scalars = {key: value for line in logged() for key, value in line.items()}
    losses = {key: value for key, value in scalars.items() if "loss" in key.split("/")[-1]}
    wanted = {"total_loss", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    wanted |= {f"loss_{k}_stage{s}" for k in ("cls", "box_reg") for s in range(3)}
    assert wanted <= set(losses)
    assert all(math.isfinite(loss) for loss in losses.values())
    assert 0 <= scalars["stage2/droploss/kept_background"] <= 1
    assert 0 <= scalars["segm/AR100"] <= 100
    (trained,) = evaluations
    assert set(trained) == {"bbox", "segm"}
    for figures in trained.values():
        assert {"AP", "AP50", "AP75", "AR1", "AR10", "AR100"} <= set(figures)
    detections = output / "inference" / "tiny_photos" / "coco_instances_results.json"
    assert detections.is_file()
    first = detections.read_bytes()

    command = ["--eval-only", "MODEL.WEIGHTS", output / "model_final.pth"]
    assert train_net("--config", file, *command)[0] == 0
    assert evaluations[1] == trained
    assert detections.read_bytes() == first
    assert starts == [0]

    assert train_net("--config", file, "--resume", "SOLVER.MAX_ITER", "5")[0] == 0
    assert starts == [0, 3]
    assert iteration_of(output / "model_final.pth") == 4

    assert train_net("--config", file)[0] == 0  # without --resume, from the beginning
    assert starts == [0, 3, 0]


def test_the_frozen_vit_is_in_no_checkpoint_and_no_optimizer(configured, tmp_path):
    cfg = configured()
    trainer = ProMergeTrainer(cfg)
    trainer.checkpointer.save("now")
    names = torch.load(tmp_path / "output" / "now.pth", weights_only=False)["model"]
    assert any(name.startswith("backbone.levels.") for name in names)
    # but for what says which ViT it was
    assert [n for n in names if n.startswith("backbone.net")] == ["backbone.net.network"]
    trained = sum(p.numel() for g in trainer.optimizer.param_groups for p in g["params"])
    assert trained == sum(p.numel() for p in trainer.model.parameters())


def test_losses_fall_on_one_easy_image(configured, tmp_path):
    box = (30, 20, 66, 60)
    save_image(tmp_path / "easy" / "a.png", photo(96, 96, box))
    coco_json(tmp_path / "easy.json", [("a.png", 96, 96, [square(96, 96, *box)])])
    entry = ["easy", str(tmp_path / "easy.json"), str(tmp_path / "easy")]
    cfg = configured(
        **{
            "DATASETS.PROMERGE": [entry],
            "DATASETS.TRAIN": ["easy"],
            "DATASETS.TEST": [],
            "SOLVER.IMS_PER_BATCH": 1,
            "SOLVER.MAX_ITER": 25,
            "SOLVER.BASE_LR": 0.002,
        }
    )
    trainer = ProMergeTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert len(losses) == 25
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4])


# The loader


def colored(tmp_path):
    """Four even images, each with an object of another grey."""
    images = []
    for number in range(4):
        x, y = 48 * (number % 2), 48 * (number // 2)
        pixels = np.full((96, 96, 3), 10, np.uint8)
        pixels[y : y + 40, x : x + 40] = 100 + 40 * number
        save_image(tmp_path / "colored" / f"{number}.png", pixels)
        images.append((f"{number}.png", 96, 96, [square(96, 96, x, y, x + 40, y + 40)]))
    coco_json(tmp_path / "colored.json", images)
    return ["colored", str(tmp_path / "colored.json"), str(tmp_path / "colored")]


def examples(cfg, count):
    loader = iter(ProMergeTrainer.build_train_loader(cfg))
    return list(itertools.islice(itertools.chain.from_iterable(loader), count))


@pytest.fixture
def on_colored(configured, tmp_path):
    def make(**changes):
        return configured(
            **{
                "DATASETS.PROMERGE": [colored(tmp_path)],
                "DATASETS.TRAIN": ["colored"],
                "DATASETS.TEST": [],
                **changes,
            }
        )

    return make


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_pastes_objects_of_other_images(on_colored, workers):
    found = examples(on_colored(**{"DATALOADER.NUM_WORKERS": workers}), 24)
    pasted = [example for example in found if len(example["instances"]) == 2]
    assert len(pasted) >= 10  # some are refused, for they would hide half of the receiver's
    places, pairs = set(), collections.Counter()
    for example in pasted:
        own, other = example["instances"].gt_masks.tensor
        assert not (own & other).any()
        number = int(example["file_name"].rsplit("/", 1)[1][0])
        assert example["image"][:, own].float().median() == 100 + 40 * number
        color = int(example["image"][:, other].float().median())
        assert color in {100, 140, 180, 220} - {100 + 40 * number}
        pairs[number, color] += 1
        boxes = example["instances"].gt_boxes.tensor
        assert torch.equal(boxes, example["instances"].gt_masks.get_bounding_boxes().tensor)
        places.add(tuple(boxes[1].tolist()))
    assert len(places) > len(pasted) / 2
    assert len(pairs) > 3
    for example in found:
        assert example["instances"].gt_classes.eq(0).all()


@pytest.mark.parametrize(
    "changes", [{"INPUT.COPY_PASTE.ENABLED": False}, {"INPUT.COPY_PASTE.RATE": 0.0}]
)
def test_without_pasting_images_stay_as_they_are(on_colored, changes):
    for example in examples(on_colored(**changes), 8):
        (mask,) = example["instances"].gt_masks.tensor
        number = int(example["file_name"].rsplit("/", 1)[1][0])
        assert (example["image"][:, mask] == 100 + 40 * number).all()
        assert (example["image"][:, ~mask] == 10).all()


def test_images_without_labels_are_left_out_as_receivers_and_donors(
    on_colored, tmp_path, monkeypatch
):
    cfg = on_colored()
    save_image(tmp_path / "colored" / "none.png", np.full((96, 96, 3), 60, np.uint8))
    images = [
        (f"{number}.png", 96, 96, [square(96, 96, 48 * (number % 2), 48 * (number // 2), 90, 90)])
        for number in range(2)
    ]
    coco_json(tmp_path / "colored.json", [*images, ("none.png", 96, 96, [])])
    seen = []
    real = LabelMapper.__call__

    def spy(self, record):
        seen.append(record["file_name"].rsplit("/", 1)[1])
        return real(self, record)

    monkeypatch.setattr(LabelMapper, "__call__", spy)
    examples(cfg, 8)
    assert set(seen) == {"0.png", "1.png"}


def test_the_pixels_under_each_mask_are_those_that_were_labelled(configured, tmp_path):
    # Photographs of every orientation in TIFF, and of 16 bits: labelled as the labeler sees them.
    folder, images, labelled = tmp_path / "turned", [], {}
    rng = np.random.default_rng(0)
    for orientation in range(1, 9):
        shape = (60, 96) if orientation < 5 else (96, 60)
        stored = stored_pixels(photo(*shape, box=(30, 20, 50, 55), seed=orientation), orientation)
        name = f"{orientation}.tif"
        save_image(folder / name, stored, exif=exif_of(orientation))
    deep = rng.integers(0, 4096, (60, 96), dtype=np.uint16)
    save_image(folder / "deep.png", deep)
    cv2.imwrite(str(folder / "deep_rgb.png"), rng.integers(0, 4096, (60, 96, 3), dtype=np.uint16))
    for file in sorted(folder.iterdir()):
        pixels = load_image(file)
        mask = square(*pixels.shape[:2], 30, 20, 50, 55)
        labelled[file.name] = pixels, mask
        images.append((file.name, *pixels.shape[:2], [mask]))
    coco_json(tmp_path / "turned.json", images)
    cfg = configured(
        **{
            "DATASETS.PROMERGE": [["turned", str(tmp_path / "turned.json"), str(folder)]],
            "DATASETS.TRAIN": ["turned"],
            "DATASETS.TEST": ["turned"],
            "INPUT.MIN_SIZE_TRAIN": [60],
            "INPUT.COPY_PASTE.ENABLED": False,
            "SOLVER.MAX_ITER": 1,
        }
    )
    seen = set()
    for example in examples(cfg, 30):
        name = example["file_name"].rsplit("/", 1)[1]
        seen.add(name)
        pixels, mask = labelled[name]
        (found,) = example["instances"].gt_masks.tensor.numpy()
        assert np.array_equal(found, mask)
        assert np.array_equal(example["image"].permute(1, 2, 0).numpy()[found], pixels[mask])
    assert seen == set(labelled)
    assert labelled["deep.png"][0].max() == labelled["deep_rgb.png"][0].max() == 255
    for record in ProMergeTrainer.build_test_loader(cfg, "turned"):
        name = record[0]["file_name"].rsplit("/", 1)[1]
        assert record[0]["image"].shape[1] / record[0]["image"].shape[2] == pytest.approx(
            labelled[name][0].shape[0] / labelled[name][0].shape[1], rel=0.02
        )
    assert math.isfinite(history(run_on(cfg))["total_loss"][0][0])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_gone_or_has_another_size_is_named(on_colored, tmp_path, workers):
    cfg = on_colored(**{"DATALOADER.NUM_WORKERS": workers})
    for number in range(4):
        (tmp_path / "colored" / f"{number}.png").unlink()
    for loader in (ProMergeTrainer.build_train_loader, ProMergeTrainer.build_test_loader):
        arguments = (cfg,) if loader == ProMergeTrainer.build_train_loader else (cfg, "colored")
        with pytest.raises(ImageError, match=rf"{tmp_path}/colored/\d\.png") as caught:
            next(iter(loader(*arguments)))
        assert "Traceback" not in str(caught.value)
    for number in range(4):
        save_image(tmp_path / "colored" / f"{number}.png", np.zeros((96, 90, 3), np.uint8))
    with pytest.raises(UserError, match=rf"{tmp_path}/colored/\d\.png.*\(90, 96\).*\(96, 96\)"):
        examples(cfg, 4)


def test_boxes_alone_train_no_masks(on_colored, tmp_path):
    cfg = on_colored(**{"INPUT.COPY_PASTE.ENABLED": False})
    content = json.loads((tmp_path / "colored.json").read_text())
    for record in content["annotations"]:
        del record["segmentation"]
    (tmp_path / "colored.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"colored .*/colored/0\.png.*MODEL\.MASK_ON False"):
        examples(cfg, 1)
    cfg = on_colored(**{"INPUT.COPY_PASTE.ENABLED": False, "MODEL.MASK_ON": False})
    assert all(len(example["instances"]) == 1 for example in examples(cfg, 4))


def test_an_image_without_labels_can_receive(on_colored, tmp_path):
    cfg = on_colored(**{"DATALOADER.FILTER_EMPTY_ANNOTATIONS": False})
    coco_json(
        tmp_path / "colored.json",
        [("0.png", 96, 96, []), ("3.png", 96, 96, [square(96, 96, 48, 48, 88, 88)])],
    )
    received = [e for e in examples(cfg, 8) if e["file_name"].endswith("0.png")]
    assert received
    for example in received:
        (mask,) = example["instances"].gt_masks.tensor
        assert example["image"][:, mask].float().median() == 220  # the donor's, where it was put


def test_precise_bn_decodes_where_training_does(configured):
    changes = {
        "MODEL.FPN.NORM": "BN",
        "TEST.PRECISE_BN.ENABLED": True,
        "TEST.PRECISE_BN.NUM_ITER": 2,
    }
    changes |= {"SOLVER.MAX_ITER": 1, "DATASETS.TEST": []}
    statistics = []
    for count in (0, 2):
        trainer = ProMergeTrainer(configured(**changes, **{"DATALOADER.NUM_WORKERS": count}))
        (hook,) = (hook for hook in trainer._hooks if isinstance(hook, PreciseBN))
        assert hook._data_loader.num_workers == count
        trainer.train()
        statistics.append(
            {k: v for k, v in trainer.model.state_dict().items() if k.endswith("running_mean")}
        )
        assert hook._data_iter is None  # and with it the processes are gone
    assert statistics[0]
    for name, mean in statistics[0].items():
        assert mean.abs().max() > 0
        assert torch.equal(mean, statistics[1][name])


def test_precise_bn_sees_no_pasted_images(configured, monkeypatch):
    pasting = []

    def copy_paste(*args):
        pasting.append(trainer.iter)
        return promerge_d2.data.copy_paste(*args)

    monkeypatch.setitem(CopyPasteMapper.__call__.__globals__, "copy_paste", copy_paste)
    cfg = configured(
        **{
            "MODEL.FPN.NORM": "BN",
            "TEST.PRECISE_BN.ENABLED": True,
            "TEST.PRECISE_BN.NUM_ITER": 2,
            "SOLVER.MAX_ITER": 2,
            "DATASETS.TEST": [],
        }
    )
    trainer = ProMergeTrainer(cfg)
    assert trainer.cfg.INPUT.COPY_PASTE.ENABLED is True
    batches = []
    trainer.model.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0]))
    trainer.train()
    assert len(batches) == 4  # two of training, then two of PreciseBN
    assert all(len(example["instances"]) == 1 for batch in batches[2:] for example in batch)
    assert len(pasting) == 4  # two iterations of two images


@pytest.fixture
def random_everything(on_colored):
    """Sizes, flips, donors and the order are drawn."""

    def make(**changes):
        images = {
            "INPUT.RANDOM_FLIP": "horizontal",
            "INPUT.MIN_SIZE_TRAIN": [64, 80, 96],
            "INPUT.COPY_PASTE.MIN_RATIO": 0.5,
        }
        return on_colored(**{**images, **changes})

    return make


def assert_same(found, wanted):
    """Examples are equal to the bit."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one["file_name"] == other["file_name"]
        assert torch.equal(one["image"], other["image"])
        mine, theirs = one["instances"], other["instances"]
        assert torch.equal(mine.gt_masks.tensor, theirs.gt_masks.tensor)
        assert torch.equal(mine.gt_boxes.tensor, theirs.gt_boxes.tensor)


def test_examples_depend_on_seed_and_iteration_alone(random_everything):
    wanted = examples(random_everything(), 16)
    assert len({tuple(example["image"].shape) for example in wanted}) == 3
    np.random.rand()
    assert_same(examples(random_everything(**{"DATALOADER.NUM_WORKERS": 2}), 16), wanted)
    later = ProMergeTrainer.build_train_loader(random_everything())
    later.batch_sampler.start = 5  # of two images each
    assert_same(list(itertools.islice(itertools.chain.from_iterable(later), 6)), wanted[10:])
    others = examples(random_everything(SEED=2), 16)
    assert [e["file_name"] for e in others] != [e["file_name"] for e in wanted]


def test_training_with_every_option_for_labels(configured, tmp_path):
    # The image's labels: one object, the noise around it by halves, and a crowd.
    content = json.loads((tmp_path / "labels.json").read_text())
    for annotation in content["annotations"][:]:
        annotation["score"] = 0.2
        for number, box in enumerate([(0, 0, 60, 96), (60, 0, 144, 96)]):
            worse = {**annotation, **mask_record(square(96, 144, *box)), "score": 0.1}
            content["annotations"].append({**worse, "id": 10 * annotation["id"] + number + 1})
        crowd = {**content["annotations"][-1], "id": 10 * annotation["id"] + 5, "iscrowd": 1}
        content["annotations"].append(crowd)
    (tmp_path / "labels.json").write_text(json.dumps(content))
    cfg = configured(
        **{
            "INPUT.PSEUDO_LABELS": {
                **{"MAX_PER_IMAGE": 2, "IGNORE_REST": True},
                **{"WEIGHT_POWER": 0.5, "SOFT_POWER": 0.5},
            },
            "SOLVER.MAX_ITER": 2,
            "DATASETS.TEST": [],
        }
    )
    for example in examples(cfg, 2):
        instances = example["instances"]
        own = instances.gt_ignore[: 4 if len(instances) > 3 else 3].tolist()
        assert own.count(TARGET) >= 2
        assert set(own) <= {TARGET, LEFT_OUT, CROWD}
        assert instances.gt_weights[instances.gt_ignore == TARGET].max() == 1
    trainer = run_on(cfg)
    latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
    assert math.isfinite(latest["total_loss"])
    assert 0 < latest["stage0/ignored_background"] < 1


def test_images_without_a_sure_label_are_left_out(on_colored, tmp_path):
    cfg = on_colored(**{"INPUT.PSEUDO_LABELS.MIN_SCORE": 0.5})
    masks = [{"mask": square(96, 96, 0, 0, 40, 40), "score": score} for score in (0.4, 0.5)]
    coco_json(
        tmp_path / "colored.json",
        [("0.png", 96, 96, masks[:1]), ("1.png", 96, 96, masks), ("2.png", 96, 96, [])],
    )
    found = examples(cfg, 4)
    assert {example["file_name"].rsplit("/", 1)[1] for example in found} == {"1.png"}
    assert [len(example["instances"]) for example in found] == [1] * 4


def test_another_sampler_is_refused(on_colored):
    cfg = on_colored(**{"DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler"})
    with pytest.raises(
        UserError, match=r"SAMPLER_TRAIN.* TrainingSampler.* RepeatFactorTrainingSampler"
    ):
        ProMergeTrainer.build_train_loader(cfg)


# Going on


def history(trainer):
    """Every loss of every iteration."""
    return {
        name: values.values()
        for name, values in trainer.storage.histories().items()
        if "loss" in name
    }


def run_on(cfg, resume=False):
    trainer = ProMergeTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


@pytest.mark.parametrize(("optimizer", "seed"), [("SGD", 1), ("ADAMW", -1)])
def test_a_resumed_run_has_the_losses_of_one_that_was_not_stopped(
    random_everything, tmp_path, optimizer, seed
):
    def cfg(stop):
        changes = {
            "SOLVER.MAX_ITER": 6,
            "SOLVER.STEPS": [5],
            "SOLVER.WARMUP_ITERS": 4,
            "SOLVER.OPTIMIZER": optimizer,
            "SOLVER.CHECKPOINT_PERIOD": 3 if stop else 100,
            "MODEL.FPN.NORM": "BN",
            "TEST.PRECISE_BN.ENABLED": True,
            "TEST.PRECISE_BN.NUM_ITER": 1,
            "TEST.EVAL_PERIOD": 2,
            "SEED": seed,
        }
        return random_everything(**changes)

    torch.manual_seed(0)
    whole = run_on(cfg(stop=True))
    (tmp_path / "output" / "last_checkpoint").write_text("model_0000002.pth")
    torch.manual_seed(1)
    rest = run_on(cfg(stop=True), resume=True)
    assert rest.start_iter == 3
    assert rest.seed == whole.seed
    wanted, found = history(whole), history(rest)
    assert len(wanted["total_loss"]) == 6
    assert found == {name: values[3:] for name, values in wanted.items()}
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def run_until_killed(cfg, moment):
    """Train, and be killed in iteration 5 of 0 to 7, or while a checkpoint is written."""
    prepare(cfg)
    trainer = ProMergeTrainer(cfg)
    backward = torch.Tensor.backward

    def dying_backward(*args, **kwargs):
        backward(*args, **kwargs)
        if trainer.iter == 5:
            die()

    def dying_save(state, file):
        if trainer.iter == 5:
            file.write(b"half of a checkpoint")
            file.flush()
            die()
        save(state, file)

    save = torch.save
    if moment == "step":
        torch.Tensor.backward = dying_backward
    else:
        torch.save = dying_save
    trainer.resume_or_load(resume=False)
    trainer.train()


@pytest.mark.parametrize("moment", ["step", "saving"])
def test_a_killed_run_ends_as_one_that_was_not(random_everything, tmp_path, evaluations, moment):
    def cfg(output):
        changes = {
            "SOLVER.MAX_ITER": 8,
            "SOLVER.CHECKPOINT_PERIOD": 2,
            "DATASETS.TEST": ["colored"],
        }
        return random_everything(**changes, OUTPUT_DIR=str(tmp_path / output))

    whole = run_on(cfg("whole"))
    process = multiprocessing.get_context("spawn").Process(
        target=run_until_killed, args=(cfg("killed"), moment)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    rest = run_on(cfg("killed"), resume=True)
    assert rest.start_iter == 4  # the last whole checkpoint is that of iteration 3
    assert evaluations[-1] == evaluations[0]
    wanted, found = history(whole), history(rest)
    assert len(found["total_loss"]) == 4
    assert found == {name: values[4:] for name, values in wanted.items()}


@pytest.mark.parametrize("damage", ["cut", "gone", "another detector's"])
def test_a_checkpoint_that_cannot_be_used_is_named(train_net, config, tmp_path, damage):
    file, output = config(**{"SOLVER.MAX_ITER": 1, "DATASETS.TEST": []}), tmp_path / "output"
    assert train_net("--config", file)[0] == 0
    (output / "model_final.pth").rename(output / "model_0000000.pth")
    if damage != "gone":
        content = torch.load(output / "model_0000000.pth", weights_only=False)
        content["trainer"]["_trainer"]["optimizer"]["param_groups"] = []
        torch.save(content, output / "model_final.pth")
    if damage == "cut":
        whole = (output / "model_final.pth").read_bytes()
        (output / "model_final.pth").write_bytes(whole[: len(whole) // 2])
    code, _, err = train_net("--config", file, "--resume", "SOLVER.MAX_ITER", "2")
    assert code == 3
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert str(output / "model_final.pth") in line
    assert "model_0000000.pth" in line
    assert "Traceback" not in err
    (output / "last_checkpoint").write_text("model_0000000.pth")
    assert train_net("--config", file, "--resume", "SOLVER.MAX_ITER", "2")[0] == 0


def test_precise_bn_without_batchnorm_has_nothing_to_do(configured):
    hooks = ProMergeTrainer(configured(**{"TEST.PRECISE_BN.ENABLED": True})).build_hooks()
    assert not any(isinstance(hook, PreciseBN) for hook in hooks)
    with_bn = configured(**{"TEST.PRECISE_BN.ENABLED": True, "MODEL.FPN.NORM": "BN"})
    hooks = ProMergeTrainer(with_bn).build_hooks()
    assert sum(isinstance(hook, PreciseBN) for hook in hooks) == 1


# The optimiser


def test_adamw(configured):
    trainer = ProMergeTrainer(configured())
    optimizer = trainer.optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decays) == len(list(trainer.model.parameters()))
    norms = [m for m in trainer.model.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert norms
    assert {decays[id(p)] for norm in norms for p in norm.parameters()} == {0.0}
    heads = [m for m in trainer.model.modules() if isinstance(m, DropLossOutputLayers)]
    assert len(heads) == 3
    assert {decays[id(head.cls_score.weight)] for head in heads} == {0.05}
    assert {group["initial_lr"] for group in optimizer.param_groups} == {0.001}


def test_sgd(configured):
    changes = {"SOLVER.OPTIMIZER": "SGD", "SOLVER.WEIGHT_DECAY": 5e-5}
    optimizer = ProMergeTrainer(configured(**changes)).optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 5e-5}


@pytest.mark.parametrize("name", ["ADAMW", "SGD"])
def test_each_tensors_gradient_is_clipped(configured, name):
    cfg = configured(**{"SOLVER.OPTIMIZER": name})
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = ProMergeTrainer.build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    small = model[1].bias
    small.grad = torch.tensor([0.3, 0.4])
    optimizer.step()
    norms = [parameter.grad.norm().item() for parameter in model.parameters()]
    assert norms == pytest.approx([1, 1, 1, 0.5], abs=1e-4)


def test_an_unknown_optimizer(configured):
    cfg = configured(**{"SOLVER.OPTIMIZER": "ADAM"})
    with pytest.raises(UserError, match=r"SOLVER\.OPTIMIZER.* SGD .*ADAMW.* ADAM$"):
        ProMergeTrainer(cfg)
