"""Train or evaluate a detector; detectron2's own arguments, and --config for --config-file."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from promerge_d2.cli.parser import ArgumentParser, find_config
from promerge_d2.engine import ProMergeTrainer, setup
from promerge_d2.engine.launch import launch_processes
from promerge_d2.engine.lazy import LazyTrainer, read_lazy, settings_of, setup_lazy, test_lazy
from promerge_d2.engine.setup import building, check_device, read_config, reading_checkpoint
from promerge_d2.utils.errors import EXIT_OK

WEIGHTS = "model_final.pth"  # detectron2's name

EPILOG = """
examples:
  label, then train on your own images, without a GPU:
    promerge label photos
    promerge train --config promerge_cascade_vit_small.yaml \\
        DATASETS.PROMERGE "[['mine', 'photos.promerge/labels.json', 'photos']]"
  on one GPU:
    promerge train --config promerge_cascade.yaml \\
        SOLVER.REFERENCE_WORLD_SIZE 8 DATASETS.TRAIN "('mine',)" \\
        DATASETS.PROMERGE "[['mine', 'photos.promerge/labels.json', 'photos']]"
  go on after a stop:        ... --resume
  a LazyConfig:              ... --config promerge_cascade.py train.output_dir=out
  two processes on a CPU:    ... --num-gpus 2 MODEL.DEVICE cpu
  evaluate a checkpoint:     ... --eval-only MODEL.WEIGHTS output/model_final.pth
"""


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(
        prog="promerge train",
        description=__doc__,
        epilog=EPILOG,
        parents=[default_argument_parser()],
        conflict_handler="resolve",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file",
        "--config",
        default="",
        type=find_config,
        metavar="FILE",
        help="a file, or the name of a shipped config such as promerge_cascade.yaml",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Launch one process a GPU (with MODEL.DEVICE cpu: as many on the CPU)."""
    args = make_parser().parse_args(argv)
    device = "cpu"
    if args.num_gpus * args.num_machines > 1:
        cfg = settings(args)
        device = cfg.MODEL.DEVICE
        if device.startswith("cpu"):
            check_device(cfg)  # said once, before there are several processes
    several = (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    launch_processes(run, (args,), device, *several)
    return EXIT_OK


def is_lazy(args: argparse.Namespace) -> bool:
    """Return whether the config is a Python file."""
    return args.config_file.endswith(".py")


def settings(args: argparse.Namespace) -> CfgNode:
    """Read the configuration, without checking it."""
    if is_lazy(args):
        return settings_of(read_lazy(args.config_file, args.opts))
    return read_config(args.config_file, args.opts)


def print_next(output: Path) -> None:
    """Print the command that draws what a new detector finds."""
    config, weights = (shlex.quote(str(output / name)) for name in ("config.yaml", WEIGHTS))
    print(
        f"look at detections: promerge demo --config {config} --input photos --output detections "
        f"MODEL.WEIGHTS {weights}"
    )


def run(args: argparse.Namespace) -> dict:
    """Do one process's work: evaluate, or train (and evaluate as the config says).

    Returns:
        Figures by name, by kind; of the last evaluation.
    """
    if is_lazy(args):
        config, trainer, test = setup_lazy(args), LazyTrainer, test_lazy
        cfg = settings_of(config)
    else:
        config = cfg = setup(args)
        trainer, test = ProMergeTrainer, ProMergeTrainer.test
    if not args.eval_only:
        running = trainer(config)
        running.resume_or_load(resume=args.resume)
        results = running.train()
        if comm.is_main_process() and not is_lazy(args):
            print_next(Path(cfg.OUTPUT_DIR))
        return results
    with building("the model"):
        model = trainer.build_model(config)
    with reading_checkpoint(cfg.MODEL.WEIGHTS):
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).load(cfg.MODEL.WEIGHTS)
    results = test(config, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
