"""From images and a mask generator to a pseudo-label data set on disk."""

from promerge_d2.pseudo_labels.finding import list_images
from promerge_d2.pseudo_labels.inputs import ImageList
from promerge_d2.pseudo_labels.label import label_images
from promerge_d2.pseudo_labels.local_engine import LocalEngine, choose_workers
from promerge_d2.pseudo_labels.merge import RunSummary, merge_labels, print_summary
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
    "print_summary",
]
