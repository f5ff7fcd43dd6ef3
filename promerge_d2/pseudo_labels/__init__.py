"""From an image source and a labeler to a pseudo-label data set on disk."""

from promerge_d2.pseudo_labels.inputs import ImageList, list_images
from promerge_d2.pseudo_labels.label import RunSummary, label_images
from promerge_d2.pseudo_labels.local_engine import LocalEngine, choose_workers
from promerge_d2.pseudo_labels.merge import merge_labels
from promerge_d2.pseudo_labels.store import parts_of

__all__ = [
    "ImageList",
    "LocalEngine",
    "RunSummary",
    "choose_workers",
    "label_images",
    "list_images",
    "merge_labels",
    "parts_of",
]
