"""Read and check a configuration before anything slow starts."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import glob
import logging
import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import default_setup
from detectron2.utils.logger import setup_logger

from promerge_d2.config import add_promerge_config
from promerge_d2.data import check_datasets, register_from_config
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import make_folder

logger = logging.getLogger(__name__)

CPU_LINE = (
    "MODEL.DEVICE cpu MODEL.RESNETS.NORM BN MODEL.FPN.NORM BN SOLVER.AMP.ENABLED False "
    "SOLVER.IMS_PER_BATCH 2"
)

# what torch, fvcore and detectron2 raise where settings, or a file and a model, do not go together
CLASHES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)


def setup(args: argparse.Namespace) -> CfgNode:
    """Return the frozen configuration of a run, checked.

    Args:
        args: of detectron2's ``default_argument_parser``: ``config_file``, ``opts``,
            ``eval_only``, ``resume``.

    Returns:
        The configuration; detectron2's logging and seed are set up, data sets are registered.

    Raises:
        UserError: a key that does not exist, data sets or weights that are not there, or settings
            that cannot run on this machine.
    """
    cfg = read_config(args.config_file, args.opts)
    register_from_config(cfg)
    check_device(cfg)
    check_values(cfg)
    check_files(cfg, args.eval_only, args.resume)
    check_classes(cfg)
    if not args.eval_only:
        check_schedule(cfg)
        check_sizes(cfg)
        check_masks(cfg)
        check_labels(cfg)
    make_folder(cfg.OUTPUT_DIR or ".")
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, name="promerge_d2")
    return cfg


def read_config(config_file: str, opts: list[str]) -> CfgNode:
    """Merge a YAML file and ``KEY VALUE`` pairs over the defaults.

    Args:
        config_file: the YAML file; ``_BASE_`` in it names another to start from.
        opts: keys and values in turn.

    Returns:
        The configuration, neither checked nor frozen.

    Raises:
        UserError: the file is missing or no YAML mapping, a key does not exist (near matches are
            named), or a value has the wrong type.
    """
    cfg = get_cfg()
    add_promerge_config(cfg)
    keys = list(_keys(cfg))
    if not config_file:
        raise UserError("name a config: --config promerge_cascade.yaml")
    if not os.path.isfile(config_file):
        raise UserError(f"the config {config_file} does not exist")
    if len(opts) % 2:
        raise UserError(f"options come in pairs KEY VALUE; {opts[-1]!r} has no value")
    for key in opts[::2]:
        if key not in keys:
            raise _unknown_key(key, keys)
    try:
        cfg.merge_from_file(config_file)
        cfg.merge_from_list(opts)
    except KeyError as error:  # yacs names the key at the end of its message
        raise _unknown_key(str(error.args[0]).rsplit(": ", 1)[-1], keys) from error
    except (ValueError, TypeError, AssertionError, OSError, yaml.YAMLError) as error:
        # a value of another type, no YAML, no mapping, a base that is not there
        raise UserError(f"{config_file} or the options: {error}") from error
    return cfg


def check_device(cfg: CfgNode) -> None:
    """Fit the configuration to the device, or refuse.

    Mixed precision on a CPU is switched off with one warning.

    Raises:
        UserError: a GPU is asked for and there is none, or SyncBN without one.
    """
    on_cpu = cfg.MODEL.DEVICE.startswith("cpu")
    if not on_cpu and not torch.cuda.is_available():
        raise UserError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but this machine has no CUDA GPU; to run on "
            f"the CPU, add: {CPU_LINE}"
        )
    if not on_cpu:
        return
    norms = {"MODEL.FPN.NORM": cfg.MODEL.FPN.NORM}
    if "resnet" in cfg.MODEL.BACKBONE.NAME:
        norms["MODEL.RESNETS.NORM"] = cfg.MODEL.RESNETS.NORM
    synced = [f"{name} BN" for name, norm in norms.items() if norm == "SyncBN"]
    if synced:
        raise UserError(f"SyncBN needs GPUs; on a CPU add: {' '.join(synced)}")
    if cfg.SOLVER.AMP.ENABLED:
        logger.warning("SOLVER.AMP.ENABLED is switched off: mixed precision needs a GPU")
        cfg.SOLVER.AMP.ENABLED = False


def check_files(cfg: CfgNode, eval_only: bool, resume: bool) -> None:
    """Refuse weights and data sets that are not there; a run that goes on has its own weights.

    Raises:
        UserError: one message for all of them.
    """
    names = [*cfg.DATASETS.TEST, *(() if eval_only else cfg.DATASETS.TRAIN)]
    problems = []
    checks = [functools.partial(check_datasets, names)]
    last = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if eval_only or not (resume and os.path.isfile(last)):
        checks.insert(0, functools.partial(check_weights, cfg, eval_only))
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def check_classes(cfg: CfgNode) -> None:
    """Refuse data with other classes than the detector has.

    Raises:
        UserError: with the number to set.
    """
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        classes = len(MetadataCatalog.get(name).get("thing_classes", ()))
        if classes and classes != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise UserError(
                f"the data set {name} has {classes} classes, the detector "
                f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}: set MODEL.ROI_HEADS.NUM_CLASSES {classes}, or "
                "take other data"
            )


AT_LEAST_ONE = (
    *("MODEL.FPN.OUT_CHANNELS", "MODEL.RPN.BATCH_SIZE_PER_IMAGE"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_HEADS.NUM_CLASSES"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION"),
)
BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")


def check_values(cfg: CfgNode) -> None:
    """Refuse values that detectron2 would meet in a step only, or after the last, or not at all.

    Raises:
        UserError: the key and the value that cannot be.
    """
    for key in AT_LEAST_ONE:
        value = functools.reduce(getattr, key.split("."), cfg)
        if value < 1:
            raise UserError(f"{key} is {value}; give 1 or more")
    if cfg.INPUT.MIN_SIZE_TEST < 0:
        raise UserError(
            f"INPUT.MIN_SIZE_TEST is {cfg.INPUT.MIN_SIZE_TEST}; give a size in pixels, or 0 to "
            "leave images as they are"
        )
    for part in ("RPN", "ROI_BOX_HEAD"):
        kind = cfg.MODEL[part].BBOX_REG_LOSS_TYPE
        if kind not in BOX_LOSSES:
            raise UserError(
                f"MODEL.{part}.BBOX_REG_LOSS_TYPE is {kind!r}; take {', '.join(BOX_LOSSES)}"
            )
    wanted = cfg.TEST.EXPECTED_RESULTS
    if wanted and len(cfg.DATASETS.TEST) != 1:
        raise UserError(
            "TEST.EXPECTED_RESULTS are those of one data set, but DATASETS.TEST is "
            f"{cfg.DATASETS.TEST}"
        )
    for entry in wanted:
        match entry:
            case ["bbox" | "segm", str(), int() | float(), int() | float()]:
                continue
        raise UserError(
            "TEST.EXPECTED_RESULTS lists [bbox or segm, metric, figure, tolerance] each, such as "
            f"['segm', 'AP', 33.0, 15.0], not {entry!r}"
        )


def check_schedule(cfg: CfgNode) -> None:
    """Refuse a schedule of no length, and drop steps that are never reached, with one warning.

    Raises:
        UserError: the key and the value that cannot be.
    """
    for key in ("MAX_ITER", "CHECKPOINT_PERIOD"):
        if cfg.SOLVER[key] < 1:
            raise UserError(f"SOLVER.{key} is {cfg.SOLVER[key]}; give 1 or more")
    if not -(2**31) <= cfg.SEED < 2**31:
        raise UserError(f"SEED is {cfg.SEED}; give a number below {2**31}, or -1 to draw one")
    steps = reached_steps(cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER)
    if steps != list(cfg.SOLVER.STEPS):
        logger.warning("SOLVER.STEPS is %s: SOLVER.MAX_ITER is %d", steps, cfg.SOLVER.MAX_ITER)
        cfg.SOLVER.STEPS = tuple(steps)


def reached_steps(steps: Sequence[int], max_iter: int) -> list[int]:
    """Return the steps of a schedule that come before its end, in order.

    detectron2 ignores later ones, but cannot do with one at the very end.
    """
    return sorted({step for step in steps if 0 < step < max_iter})


def check_sizes(cfg: CfgNode) -> None:
    """Refuse image sizes that nothing can be resized to.

    Raises:
        UserError: the keys and their values.
    """
    sizes, sampling = list(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if sampling not in ("choice", "range"):
        raise UserError(f"INPUT.MIN_SIZE_TRAIN_SAMPLING is choice or range, not {sampling}")
    if sampling == "range" and (len(sizes) != 2 or sizes[0] >= sizes[1]):
        raise UserError(
            "INPUT.MIN_SIZE_TRAIN_SAMPLING range draws between two sizes, the smaller first: "
            f"INPUT.MIN_SIZE_TRAIN is {sizes}"
        )
    if not sizes or min(sizes) < 0:
        raise UserError(f"INPUT.MIN_SIZE_TRAIN is {sizes}; list sizes in pixels")
    for key in ("MAX_SIZE_TRAIN", "MAX_SIZE_TEST"):
        if cfg.INPUT[key] < 1:
            raise UserError(f"INPUT.{key} is {cfg.INPUT[key]}; give a size in pixels")


def check_masks(cfg: CfgNode) -> None:
    """Refuse mask settings that cannot train on pseudo-labels.

    Raises:
        UserError: masks that would not be read as bitmaps, or copy-paste without masks.
    """
    if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT != "bitmask":
        raise UserError("pseudo-labels are RLE masks: set INPUT.MASK_FORMAT bitmask")
    if cfg.INPUT.COPY_PASTE.ENABLED and not cfg.MODEL.MASK_ON:
        raise UserError(
            "copy-paste needs masks: set MODEL.MASK_ON True or INPUT.COPY_PASTE.ENABLED False"
        )


OUR_HEADS = ("DropLossCascadeROIHeads", "DropLossStandardROIHeads")


def check_labels(cfg: CfgNode) -> None:
    """Refuse what the heads of the configuration would pass over in silence.

    Raises:
        UserError: one message for all of them, with the keys to change.
    """
    problems = []
    labels, heads = cfg.INPUT.PSEUDO_LABELS, cfg.MODEL.ROI_HEADS
    if heads.NAME in OUR_HEADS:
        if cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE:
            problems.append(
                f"{heads.NAME} has a softmax: set MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE False"
            )
    elif heads.DROPLOSS_IOU_THRESH >= 0:
        problems.append(
            f"MODEL.ROI_HEADS.NAME {heads.NAME} has no DropLoss: set MODEL.ROI_HEADS."
            f"DROPLOSS_IOU_THRESH -1.0, or take {' or '.join(OUR_HEADS)}"
        )
    # option, where it is used, what knows of it
    needs = [
        ("IGNORE_REST", "MODEL.ROI_HEADS.NAME", OUR_HEADS),
        ("IGNORE_REST", "MODEL.PROPOSAL_GENERATOR.NAME", ("IgnoringRPN",)),
        ("WEIGHT_POWER", "MODEL.ROI_HEADS.NAME", OUR_HEADS),
        ("WEIGHT_POWER", "MODEL.ROI_MASK_HEAD.NAME", ("WeightedMaskHead",)),
        ("SOFT_POWER", "MODEL.ROI_HEADS.NAME", OUR_HEADS),
    ]
    for option, key, names in needs:
        node = functools.reduce(getattr, key.split("."), cfg)
        if labels[option] and node not in names:
            problems.append(
                f"INPUT.PSEUDO_LABELS.{option} does nothing with {key} {node}: "
                f"set it to {' or '.join(names)}"
            )
    if problems:
        raise UserError("\n".join(problems))


def check_weights(cfg: CfgNode, eval_only: bool) -> None:
    """Refuse to evaluate without weights, and weights that are not there.

    Raises:
        UserError: with what makes them.
    """
    weights = cfg.MODEL.WEIGHTS
    if eval_only and not weights:
        raise UserError(
            "--eval-only needs a trained detector: add MODEL.WEIGHTS output/model_final.pth"
        )
    if weights and "://" not in weights and not os.path.isfile(weights):
        hint = ""
        if os.path.basename(weights) == "dino_resnet50_d2.pkl":
            hint = f"; make it with: promerge convert-dino-resnet --output {weights}"
        raise UserError(f"MODEL.WEIGHTS {weights} does not exist{hint}")


def reading_checkpoint(file: str) -> AbstractContextManager[None]:
    """Turn what torch and fvcore say of a checkpoint that is cut, gone or another's into one line.

    Args:
        file: the checkpoint.

    Raises:
        UserError: from whatever else was raised.
    """

    def describe(error: Exception) -> str:
        others = sorted(glob.glob(os.path.join(glob.escape(os.path.dirname(file)), "*.pth")))
        names = [os.path.basename(other) for other in others if other != file]
        hint = f"; beside it are {', '.join(names)}" if names else ""
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return f"cannot use the checkpoint {file}: {reason}{hint}"

    return _in_one_line(describe, EOFError, ImportError, OSError, pickle.UnpicklingError, *CLASHES)


def building(part: str) -> AbstractContextManager[None]:
    """Turn what detectron2 and torch say of settings that clash into one line.

    They check a configuration with assertions and look-ups of all kinds where they build from it,
    and some of it by the shapes of the first step alone.

    Args:
        part: what is being made, for the message.

    Raises:
        UserError: from whatever else was raised.
    """
    return _in_one_line(
        lambda error: f"{part} cannot be made as configured: {_where(error)}", *CLASHES
    )


def reading_python(what: str) -> AbstractContextManager[None]:
    """Turn whatever a Python config raises, which is a program of its own, into one line.

    Args:
        what: the file, for the message.

    Raises:
        UserError: from whatever else was raised.
    """
    return _in_one_line(lambda error: f"the config {what} does not run: {_where(error)}", Exception)


def _where(error: Exception) -> str:
    """Return an error's name, the first line of its message, and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    reason = (str(error) or str(last.line)).splitlines()[0]
    return (
        f"{type(error).__name__}: {reason} ({os.path.basename(last.filename)}, line {last.lineno})"
    )


@contextlib.contextmanager
def _in_one_line(describe: Callable[[Exception], str], *kinds: type[Exception]) -> Iterator[None]:
    """Raise errors of these kinds as a ``UserError`` with the text that ``describe`` gives."""
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        raise UserError(describe(error)) from error


def _unknown_key(key: str, keys: list[str]) -> UserError:
    near = difflib.get_close_matches(key, keys, n=3)
    hint = f"; near matches: {', '.join(near)}" if near else ""
    return UserError(f"no config key is named {key}{hint}")


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")
