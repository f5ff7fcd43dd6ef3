#!/usr/bin/env python
"""Train or evaluate a detector; detectron2's own arguments, and --config for --config-file."""

from __future__ import annotations

import argparse
import sys

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import default_argument_parser, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm

import promerge_d2  # noqa: F401 - registers heads, backbones and data sets
from promerge_d2.engine import ProMergeTrainer, setup
from promerge_d2.utils.cli import EXIT_OK, EXIT_REFUSED, ArgumentParser, run_tool
from promerge_d2.utils.errors import UserError

EPILOG = """
examples:
  label, then train on your own images (one GPU):
    python tools/label_images.py --input photos --output labels.json
    python tools/train_net.py --config configs/promerge_cascade.yaml \\
        SOLVER.REFERENCE_WORLD_SIZE 8 DATASETS.TRAIN "('mine',)" \\
        DATASETS.PROMERGE "[['mine', 'labels.json', 'photos']]"
  go on after a stop:        ... --resume
  evaluate a checkpoint:     ... --eval-only MODEL.WEIGHTS output/model_final.pth
"""


def main() -> int:
    """Parse, launch one process a GPU."""
    parser = ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        parents=[default_argument_parser()],
        conflict_handler="resolve",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", dest="config_file", help="the same as --config-file")
    args = parser.parse_args()
    if args.num_gpus * args.num_machines > 1:
        launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    else:
        run(args)
    return EXIT_OK


def run(args: argparse.Namespace) -> dict:
    """One process's work: evaluate, or train (and evaluate as the config says)."""
    try:
        cfg = setup(args)
    except UserError as error:
        if comm.get_world_size() == 1:
            raise
        if comm.is_main_process():
            sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_REFUSED)
    if not args.eval_only:
        trainer = ProMergeTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = ProMergeTrainer.build_model(cfg)
    DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).load(cfg.MODEL.WEIGHTS)
    results = ProMergeTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


if __name__ == "__main__":
    run_tool(main)
