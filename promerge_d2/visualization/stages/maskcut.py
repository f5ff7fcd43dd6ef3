"""Panels of the labeler ``maskcut``."""

from __future__ import annotations

from matplotlib.axes import Axes

from promerge_d2.visualization.stages.view import OPENING, REFINED, Caption, Panel, View, counted


def cuts(view: View, axes: Axes) -> Caption:
    """Draw the masks that successive cuts found."""
    masks = view.stages.merged
    view.show_masks(axes, masks)
    return Caption(
        f"{view.settings('tau', 'masks', 'void_iou', 'min_area')}: {counted(masks, 'mask')}",
        "The masks of successive cuts. Patches whose cosine reaches tau hold together: raise it "
        "for smaller masks.",
    )


PANELS: tuple[Panel, ...] = (*OPENING, ("Cuts", cuts), REFINED)
