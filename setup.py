"""Build promerge_d2 as pyproject.toml says, and put configs/ into the wheel."""

from __future__ import annotations

import os

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copy configs/ to promerge_d2/configs: the repository has one copy, beside the package."""

    def run(self) -> None:
        """Build, and copy; an editable install finds them in the repository."""
        super().run()
        if not self.editable_mode:
            self.copy_tree("configs", os.path.join(self.build_lib, "promerge_d2", "configs"))


setup(cmdclass={"build_py": BuildWithConfigs})
