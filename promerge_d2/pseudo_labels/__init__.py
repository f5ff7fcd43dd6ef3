"""From an image source and a labeler to a pseudo-label data set on disk."""

from promerge_d2.pseudo_labels.inputs import ImageList, list_images
from promerge_d2.pseudo_labels.label import RunSummary, label_images

__all__ = ["ImageList", "RunSummary", "label_images", "list_images"]
