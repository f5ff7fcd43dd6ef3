"""One sheet an image that shows what each of a labeler's stages made, and what decided it.

Each labeler's panels are in a file of its own. To draw one more thing, write one more function
and list it in ``PANELS`` of that file; that file is listed in ``sheet.PANELS``. A labeler without
one has the panels that all share.
"""

from __future__ import annotations

from promerge_d2.visualization.stages.sheet import DPI, PANELS, draw_sheet
from promerge_d2.visualization.stages.view import View, counted, view_stages

__all__ = ["DPI", "PANELS", "View", "counted", "draw_sheet", "view_stages"]
