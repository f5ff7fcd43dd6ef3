"""From images and a mask generator to a pseudo-label data set on disk."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# where each is; imported when asked for, since only labelling needs torch, which takes seconds
_MODULES = {
    "ImageList": "inputs",
    "LocalEngine": "local_engine",
    "RunSummary": "merge",
    "choose_workers": "local_engine",
    "label_images": "label",
    "list_images": "finding",
    "merge_labels": "merge",
    "parts_of": "store",
    "print_summary": "merge",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
