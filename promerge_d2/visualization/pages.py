"""Pages that open from disk, without a server: templates filled in by Jinja2, all text escaped."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from promerge_d2.utils.files import atomic_path


def write_page(path: Path, template: str, **content: Any) -> None:
    """Fill in a template and write it as a whole; parent folders are made.

    Args:
        path: the ``.html`` file.
        template: a file of ``templates/``.
        **content: what the template names.
    """
    page = _templates().get_template(template).render(content)
    with atomic_path(path) as part:
        part.write_text(page, encoding="utf-8")


@functools.cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("promerge_d2.visualization"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
