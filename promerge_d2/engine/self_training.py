"""Self-training: a detector labels the images that it was trained on, and is trained on.

Every round is a folder, made in this order; what is there is not made again, so that the same
command goes on after a stop of any kind::

    OUT/images.json          the images, by name, with their sizes in bytes
    OUT/round-1/settings.json     what the round is made of
    OUT/round-1/predictions.json  detections of round 0's detector (not in round 0)
    OUT/round-1/labels.json       the round's labels
    OUT/round-1/train.yaml        what training reads; detectron2 writes config.yaml
    OUT/round-1/model_final.pth, metrics.json, ...   of training
    OUT/round-1/results.json      its evaluation; the round is done
    OUT/rounds.json, rounds.md    figures of all rounds
    OUT/losses.png                curves of all rounds
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing.spawn import ProcessException

from promerge_d2.data import check_datasets, register_from_config
from promerge_d2.engine.detector import DetectorMaskGenerator
from promerge_d2.engine.launch import launch_processes
from promerge_d2.engine.setup import check_device, check_masks, check_weights, read_config, setup
from promerge_d2.engine.trainer import ProMergeTrainer
from promerge_d2.pseudo_labels import label_images, merge_labels, parts_of, print_summary
from promerge_d2.pseudo_labels.combine import Rules, combine_labels, count_masks
from promerge_d2.pseudo_labels.inputs import ImageList
from promerge_d2.pseudo_labels.local_engine import Engine, LocalEngine
from promerge_d2.pseudo_labels.store import NotFinished, Store, locked
from promerge_d2.utils.differences import differences
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import make_folder, read_json, write_json
from promerge_d2.visualization.figures import plot_losses, read_losses

logger = logging.getLogger(__name__)

# CutLER's values, see docs/self_training.md
DETECTIONS = 30  # an image, for prediction
MIN_SCORES = (0.7, 0.65)  # of rounds 1 and 2
ROUND_VALUES = {  # key: the recipe's value in round 0, and in later rounds
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": (4000, 1000),
    "MODEL.RPN.NMS_THRESH": (0.65, 0.7),
    "INPUT.COPY_PASTE.MIN_RATIO": (0.3, 0.5),
    "SOLVER.WEIGHT_DECAY": (5e-5, 1e-4),
}
NAMED = 5  # differences in a message
COLUMNS = ("segm.AP", "segm.AP50", "segm.AR100", "bbox.AP", "bbox.AR100")
WEIGHTS = "model_final.pth"


@dataclass(frozen=True)
class Round:
    """What a round is made of.

    Attributes:
        number: from 0.
        config: name of the config file, for the record.
        cfg: the configuration, frozen; the loop sets its folder, training set and, after round 0,
            start weights.
        rules: which predictions become labels; None in round 0.
    """

    number: int
    config: str
    cfg: CfgNode
    rules: Rules | None

    def settings(self) -> dict:
        """What may not change while the round is made, as JSON has it."""
        settings: dict[str, Any] = {"config": yaml.safe_load(self.cfg.dump())}
        if self.rules is not None:
            settings["rules"] = asdict(self.rules)
        return settings


@dataclass(frozen=True)
class Share:
    """Which part of the images this process labels and predicts on.

    Attributes:
        shard, shards: as of ``label_images``. With several, nothing else is done.
        engine: gives the label engine for a number of images and the network's device.
        num_gpus: processes, each with a GPU, that share prediction and training.
    """

    engine: Callable[[int, str], Engine]
    shard: int = 0
    shards: int = 1
    num_gpus: int = 1


def plan_rounds(
    config: str,
    opts: list[str],
    rules: Sequence[Rules],
    round_configs: Sequence[str] = (),
    round_opts: Sequence[str] = (),
    test: Sequence[str] | None = None,
) -> list[Round]:
    """Read the configurations of all rounds, and refuse what cannot run, before anything starts.

    A later round's configuration is the first of these that there is: its entry of
    ``round_configs``; ``NAME_r1.yaml`` beside ``NAME.yaml`` (of either, the last one holds for all
    that follow); ``next_round`` of round 0's.

    Args:
        config: YAML file of round 0.
        opts: ``KEY VALUE`` pairs for all rounds; what ``next_round`` changes starts from them.
        rules: for each round after round 0.
        round_configs: YAML files of the later rounds.
        round_opts: ``KEY VALUE`` pairs for the later rounds; they go last.
        test: names of data sets to evaluate on, instead of the config's.

    Raises:
        UserError: as ``setup``.
    """
    rounds = []
    for number, rule in enumerate([None, *rules]):
        file = _config_of(number, config, round_configs)
        later = list(round_opts) if number else []
        cfg = read_config(file or config, [*opts, *later])  # says what is wrong with them
        if file is None:
            cfg = read_config(config, opts)
            next_round(cfg)
            cfg.merge_from_list(later)
        if test is not None:
            cfg.DATASETS.TEST = tuple(test)
        cfg.SEED = max(cfg.SEED, 0)  # a drawn one would be another after a stop
        check_round(cfg, first=number == 0)
        cfg.freeze()
        rounds.append(Round(number, os.path.basename(file or config), cfg, rule))
    return rounds


def _config_of(number: int, config: str, round_configs: Sequence[str]) -> str | None:
    """The YAML file of a round; None where round 0's is changed instead."""
    if number == 0:
        return config
    if round_configs:
        return round_configs[min(number, len(round_configs)) - 1]
    stem, suffix = os.path.splitext(config)
    own = (f"{stem}_r{k}{suffix}" for k in range(number, 0, -1))
    return next((file for file in own if os.path.isfile(file)), None)


def next_round(cfg: CfgNode) -> None:
    """Make round 0's configuration that of a later round, as configs/promerge_cascade_r1.yaml.

    DropLoss is off, the learning rate is half as high and constant, iterations are half as many.
    Of ``ROUND_VALUES``, those change that round 0 has as the recipe; one's own stay.

    Args:
        cfg: changed in place.
    """
    for key, (first, later) in ROUND_VALUES.items():
        *path, name = key.split(".")
        node = functools.reduce(getattr, path, cfg)
        if node[name] == first:
            node[name] = later
    cfg.MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH = -1.0
    cfg.SOLVER.BASE_LR *= 0.5
    cfg.SOLVER.MAX_ITER = math.ceil(cfg.SOLVER.MAX_ITER / 2)
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
    cfg.SOLVER.STEPS = ()


def check_round(cfg: CfgNode, first: bool) -> None:
    """Refuse a configuration that cannot train here, before images are labelled for it.

    Raises:
        UserError: as ``setup``.
    """
    register_from_config(cfg)
    check_device(cfg)
    check_masks(cfg)
    if not cfg.MODEL.MASK_ON:
        raise UserError("self-training needs masks: set MODEL.MASK_ON True")
    if first:
        check_weights(cfg, eval_only=False)
    try:
        check_datasets(cfg.DATASETS.TEST)
    except UserError as error:
        raise UserError(f"{error}\n(to evaluate on nothing, give --test without a name)") from error


def self_train(
    images: ImageList,
    output: Path,
    rounds: Sequence[Round],
    first_labels: Callable[[Path, Share], None],
    labels_settings: dict,
    share: Share,
) -> list[dict]:
    """Make all rounds, or what is left to make of them.

    Args:
        images: what to label and to train on.
        output: folder of the rounds.
        rounds: of ``plan_rounds``.
        first_labels: writes round 0's labels (COCO JSON) to a path, or its share of them.
        labels_settings: what those labels follow from besides the images, for the record.
        share: this process's part.

    Returns:
        The figures of each round, as in ``OUT/rounds.json``; none where this did a share.

    Raises:
        UserError: the folder was begun with other images or settings, or input is broken.
        NotFinished: a stop that the same command goes on after.
    """
    if any(file.tar for file in images.files):
        raise UserError(
            f"{images.root} has images in tars, which training cannot read; unpack them first"
        )
    make_folder(output)
    lock = locked(output / "lock", str(output)) if share.shards == 1 else contextlib.nullcontext()
    with lock:
        settings = [r.settings() for r in rounds]
        settings[0]["labels"] = labels_settings
        listing = {file.name: file.size for file in images.files}
        check_same(output / "images.json", listing, "images")
        folders = [output / f"round-{r.number}" for r in rounds]
        for folder, wanted in zip(folders, settings, strict=True):
            check_same(folder / "settings.json", wanted, "settings")
        if not (output / "images.json").exists():
            write_json(output / "images.json", listing, indent=0)
        figures = []
        for this, folder, wanted in zip(rounds, folders, settings, strict=True):
            if not (folder / "settings.json").exists():
                write_json(folder / "settings.json", wanted, indent=1)
            labels = folder / "labels.json"
            if not labels.exists():
                if this.number == 0:
                    first_labels(labels, share)
                else:
                    _next_labels(images, rounds[this.number - 1], this, folder, share)
                if share.shards > 1:
                    print(f"shard {share.shard} of {share.shards} of round {this.number} is done")
                    print("when all are, run the same command again without shards")
                    return []
            if not (folder / "results.json").exists():
                if share.shards > 1:
                    raise UserError(
                        f"round {this.number} has its labels and is to be trained now; run the "
                        "same command without shards"
                    )
                _train(images, this, folder, share.num_gpus)
            figures.append(describe_round(this, folder))
            print(format_rounds(figures[-1:]))
        write_json(output / "rounds.json", {"rounds": figures}, indent=1)
        (output / "rounds.md").write_text(format_rounds(figures) + "\n", encoding="utf-8")
        losses = {folder.name: read_losses(folder / "metrics.json") for folder in folders}
        plot_losses(losses, output / "losses.png")
        return figures


def check_same(file: Path, now: dict, what: str) -> None:
    """Refuse to go on with something else than what a file recorded; nothing if there is none.

    Raises:
        UserError: with the first differences.
    """
    if not file.exists():
        return
    before = read_json(file, f"recorded {what}")
    changed = [f"{name} was {a}, is now {b}" for name, a, b in differences(before, now)]
    if changed:
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        raise UserError(
            f"{file.parent} was begun with other {what}: {'; '.join(changed[:NAMED])}{more}; go on "
            "with what it was begun with, name another --output, or delete that folder"
        )


# Prediction


def _next_labels(images: ImageList, before: Round, this: Round, folder: Path, share: Share) -> None:
    """Predict with the round before's detector, unless that is done, and combine."""
    trained = folder.parent / f"round-{before.number}"
    predictions = folder / "predictions.json"
    assert this.rules is not None  # of every round but the first
    if not predictions.exists():
        cfg = before.cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = str(trained / WEIGHTS)
        if not this.rules.agree:  # else all count, as the config has them
            cfg.TEST.DETECTIONS_PER_IMAGE = DETECTIONS
        processes = share.num_gpus if share.shards == 1 else 1
        engine = share.engine(len(images.files) // share.shards // processes, cfg.MODEL.DEVICE)
        if not isinstance(engine, LocalEngine):
            cfg.MODEL.DEVICE = "cpu"  # here; the GPUs are elsewhere
        parts = (images, predictions, cfg, before.config, this.rules.min_score, engine)
        if processes == 1:
            _predict(*parts, share.shard, share.shards)
        else:
            what = f"prediction of round {this.number}"
            _launch(_predict, processes, cfg.MODEL.DEVICE, parts, what)
            merge_labels(predictions)
    if share.shards > 1:
        return
    combine_labels(
        images,
        trained / "labels.json",
        predictions,
        folder / "labels.json",
        this.rules,
        this.number,
        Store(parts_of(predictions)).manifest.info,
    )


def _predict(
    images: ImageList,
    output: Path,
    cfg: CfgNode,
    config: str,
    min_score: float,
    engine: Engine,
    shard: int = 0,
    shards: int = 1,
) -> None:
    """Detect on a shard of the images; of several processes each takes its own part."""
    if comm.get_world_size() > 1:
        shard, shards = comm.get_rank(), comm.get_world_size()
    detector = DetectorMaskGenerator(cfg, min_score)
    summary = label_images(
        images, output, detector, config, engine=engine, shard=shard, shards=shards
    )
    print(f"{summary.masks} detections on {summary.images} images: {output}")
    print_summary(summary, detector.reasons)


# Training


def _train(images: ImageList, this: Round, folder: Path, num_gpus: int) -> None:
    cfg = this.cfg.clone()
    cfg.defrost()
    name = str(folder)  # unlike that of any other self-training
    entry = [name, str(folder / "labels.json"), str(images.root)]
    cfg.DATASETS.PROMERGE = [*cfg.DATASETS.PROMERGE, entry]
    cfg.DATASETS.TRAIN = (name,)
    cfg.OUTPUT_DIR = str(folder)
    if this.number:
        cfg.MODEL.WEIGHTS = str(folder.parent / f"round-{this.number - 1}" / WEIGHTS)
    file = folder / "train.yaml"
    file.write_text(cfg.dump(), encoding="utf-8")
    with _loggers_restored("detectron2", "fvcore", "promerge_d2"):
        if num_gpus == 1:
            train(str(file))
        else:
            what = f"training of round {this.number}"
            _launch(train, num_gpus, cfg.MODEL.DEVICE, (str(file),), what)


def train(config_file: str) -> None:
    """Train as a config file says, on from where it stopped; write ``results.json``.

    Args:
        config_file: the whole configuration.
    """
    args = argparse.Namespace(config_file=config_file, opts=[], eval_only=False, resume=True)
    cfg = setup(args)
    trainer = ProMergeTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    if comm.is_main_process():
        results = trainer._last_eval_results if cfg.DATASETS.TEST else {}
        if len(cfg.DATASETS.TEST) == 1:  # detectron2 leaves out the name of a single one
            results = {cfg.DATASETS.TEST[0]: results}
        write_json(Path(cfg.OUTPUT_DIR) / "results.json", results, indent=1)


def _launch(work: Callable, processes: int, device: str, args: tuple, what: str) -> None:
    """Run in several processes of this machine.

    Raises:
        NotFinished: one of them stopped.
    """
    try:
        launch_processes(work, args, device, processes)
    except ProcessException as error:
        raise NotFinished(
            f"{what} stopped: {str(error).strip().splitlines()[-1]}; what is done is kept: run the "
            "same command again"
        ) from error


@contextlib.contextmanager
def _loggers_restored(*names: str) -> Iterator[None]:
    """Undo detectron2's ``setup_logger``, so that a round's log holds that round alone."""
    loggers = [logging.getLogger(name) for name in names]
    before = [(item.level, item.propagate, list(item.handlers)) for item in loggers]
    setup_logger.cache_clear()
    try:
        yield
    finally:
        for item, (level, propagate, handlers) in zip(loggers, before, strict=True):
            item.setLevel(level)
            item.propagate = propagate
            item.handlers[:] = handlers


# Figures


def describe_round(this: Round, folder: Path) -> dict:
    """The figures of a finished round.

    Returns:
        ``round``, ``config``, ``min_score``, ``labels`` (of ``count_masks``), ``failed`` (images
        that could not be read) and ``results`` (data set to the evaluation's figures).
    """
    source = folder / ("predictions.json" if this.number else "labels.json")
    failed = len(Store(parts_of(source)).failures()) if parts_of(source).is_dir() else 0
    return {
        "round": this.number,
        "config": this.config,
        "min_score": this.rules.min_score if this.rules else None,
        "labels": count_masks(folder / "labels.json", this.number),
        "failed": failed,
        "results": read_json(folder / "results.json", "round's results"),
    }


def format_rounds(figures: Sequence[dict]) -> str:
    """Labels and detector by round, a Markdown table; a row a data set."""
    head = ["round", "images", "with masks", "masks", "new", "data set", *COLUMNS]
    rows = [head, ["---"] * 6 + ["---:"] * len(COLUMNS)]
    for round_ in figures:
        labels = [str(round_["labels"][n]) for n in ("images", "with_masks", "masks", "new")]
        for name, results in (round_["results"] or {"": {}}).items():
            cells = [column.split(".") for column in COLUMNS]
            values = [results.get(kind, {}).get(metric) for kind, metric in cells]
            shown = ["" if value is None else f"{value:.2f}" for value in values]
            rows.append([str(round_["round"]), *labels, name, *shown])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
