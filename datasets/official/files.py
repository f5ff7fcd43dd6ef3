"""Official files: refused where they are missing; sizes of their images."""

from __future__ import annotations

from pathlib import Path

from promerge_d2.utils.errors import UserError


def need(path: Path, page: str) -> Path:
    """Refuse a missing file or folder: which, from which page, into which folder."""
    if not path.exists():
        raise UserError(f"{path} is missing: get {path.name} from {page} into {path.parent}")
    return path
