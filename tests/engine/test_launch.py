import json
import multiprocessing
import subprocess
import sys

import pytest
import torch
from detectron2.engine.launch import _distributed_worker, _find_free_port
from detectron2.utils import comm

from promerge_d2.engine import ProMergeTrainer
from tests.engine.spawned import prepare
from tests.helpers import ROOT, coco_json, photo, save_image, square

# No chance and no statistics of the batch: GroupNorm, every anchor and every proposal in the
# losses, one image size, no flips and no pasting. The losses of the RPN are divided by the number
# of images, those of the boxes by the number of proposals (30 an image and its one object), so
# that the mean of two processes is what one process computes.
WITHOUT_CHANCE = {
    "INPUT.COPY_PASTE.ENABLED": False,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100_000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 30,
    "MODEL.RPN.NMS_THRESH": 1.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 1000,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
    "DATASETS.TEST": [],
    "SOLVER.MAX_ITER": 3,
}
NAMES = ["loss_rpn_cls", "loss_rpn_loc"] + [
    f"loss_{kind}_stage{stage}" for kind in ("cls", "box_reg") for stage in range(3)
]


def losses_into(file, cfg):
    """Train; write every iteration's losses and counts, and some weights, of this process."""
    torch.manual_seed(0)
    trainer = ProMergeTrainer(cfg)
    own = {"loss_mask": [], "masks": []}

    def keep(_module, _inputs, losses):
        if "loss_mask" in losses:
            own["loss_mask"].append(losses["loss_mask"].item())
            images = len(cfg.DATASETS.TRAIN) * cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
            found = trainer.storage.latest()["roi_head/num_fg_samples"][0]
            own["masks"].append(round(found * images))

    trainer.model.register_forward_hook(keep)
    trainer.train()
    if comm.is_main_process():
        histories = trainer.storage.histories()
        own |= {n: [v for v, _ in histories[n].values()] for n in NAMES if n in histories}
    own["weight"] = next(iter(trainer.model.parameters())).flatten()[:20].tolist()
    with open(f"{file}.{comm.get_rank()}", "w") as stream:
        json.dump(own, stream)


def losses_of_a_process(file, cfgs):
    prepare(cfgs[0])
    for number, cfg in enumerate(cfgs):
        losses_into(f"{file}{number}", cfg)


def in_processes(count, file, cfgs):
    """What each process wrote, for each config; to start a process takes longer than to train."""
    url = f"tcp://127.0.0.1:{_find_free_port()}"
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(
            target=_distributed_worker,
            args=(rank, losses_of_a_process, count, count, 0, url, (str(file), cfgs)),
        )
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [
        [json.loads(file.with_name(f"{file.name}{n}.{rank}").read_text()) for rank in range(count)]
        for n in range(len(cfgs))
    ]


def test_two_processes_have_the_losses_of_one(configured, tmp_path):
    cfgs = [configured(**WITHOUT_CHANCE, **{"MODEL.MASK_ON": masks}) for masks in (False, True)]
    ones = []
    for number, cfg in enumerate(cfgs):
        losses_into(str(tmp_path / f"one{number}"), cfg)
        ones.append(json.loads((tmp_path / f"one{number}.0").read_text()))
    twos = in_processes(2, tmp_path / "two", cfgs)
    one, two = ones[0], twos[0]
    assert len(one["loss_rpn_cls"]) == 3
    for name in NAMES:
        assert two[0][name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name
    assert two[0]["weight"] == two[1]["weight"] == pytest.approx(one["weight"], abs=1e-6)
    # The loss of masks is divided by their number, which differs: its sums are the same, as long
    # as the weights are, in the first iteration.
    first = [(part["loss_mask"][0], part["masks"][0]) for part in (ones[1], *twos[1])]
    sums = [loss * count for loss, count in first]
    assert first[0][1] == first[1][1] + first[2][1] > 2
    assert sums[1] + sums[2] == pytest.approx(sums[0], rel=1e-5)


# The command


def test_more_processes_than_gpus(train_net, config):
    code, _, err = train_net("--config", config(**{"MODEL.DEVICE": "cuda"}), "--num-gpus", "64")
    assert code == 3
    assert "--num-gpus 64" in err
    assert "MODEL.DEVICE cpu" in err


def test_no_process(train_net, config):
    code, _, err = train_net("--config", config(), "--num-gpus", "0")
    assert code == 3
    assert "--num-gpus" in err


def test_synced_norms_in_several_cpu_processes(train_net):
    cascade = ROOT / "configs" / "promerge_cascade.yaml"
    code, _, err = train_net("--config", cascade, "--num-gpus", "2", "MODEL.DEVICE", "cpu")
    assert code == 3
    assert "MODEL.FPN.NORM BN MODEL.RESNETS.NORM BN" in err


@pytest.mark.slow
def test_the_command_in_two_processes(tmp_path):
    # Its own Python, for its processes start anew: a ResNet on made scenes.
    def command(*arguments):
        return subprocess.run(
            [sys.executable, str(ROOT / "tools" / "train_net.py"), *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    save_image(tmp_path / "photos" / "0.png", photo())
    save_image(tmp_path / "photos" / "1.png", photo(seed=1))
    mask = square(96, 144, 84, 16, 120, 48)
    coco_json(tmp_path / "labels.json", [(f"{n}.png", 96, 144, [mask]) for n in range(2)])
    options = [
        *("--config", ROOT / "configs" / "promerge_cascade.yaml", "--num-gpus", "2"),
        *("--dist-url", "auto", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "SEED", "1"),
        *("MODEL.RESNETS.NORM", "GN", "MODEL.FPN.NORM", "GN", "INPUT.MIN_SIZE_TRAIN", "(96,)"),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "INPUT.MIN_SIZE_TEST", "96"),
        *("DATASETS.PROMERGE", "[['mine', 'labels.json', 'photos']]", "OUTPUT_DIR", "out"),
        *("DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)"),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
        *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    ]
    done = command(*options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "model_final.pth").is_file()
    last = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])
    assert "segm/AP" in last
    refused = command(*options, "DATASETS.TRAIN", "('gone',)")
    assert refused.returncode == 3
    assert refused.stderr.count("the data set 'gone' is not registered") == 1
    assert "Traceback" not in refused.stderr
