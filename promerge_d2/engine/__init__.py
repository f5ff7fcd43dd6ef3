"""From a config to a trained, evaluated detector."""

import promerge_d2.data
import promerge_d2.modeling  # noqa: F401 - both register with detectron2 what configs name
from promerge_d2.engine.setup import setup
from promerge_d2.engine.trainer import ProMergeTrainer

__all__ = ["ProMergeTrainer", "setup"]
