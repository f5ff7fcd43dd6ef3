"""From an image source and a labeler to a pseudo-label data set on disk."""

from promerge_d2.pseudo_labels.inputs import ImageList, list_images
from promerge_d2.pseudo_labels.label import RunSummary, label_images
from promerge_d2.pseudo_labels.pipeline import choose_workers

__all__ = ["ImageList", "RunSummary", "choose_workers", "label_images", "list_images"]
