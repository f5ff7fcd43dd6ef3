"""From a config to a trained, evaluated detector."""

from promerge_d2.engine.setup import setup
from promerge_d2.engine.trainer import ProMergeTrainer

__all__ = ["ProMergeTrainer", "setup"]
