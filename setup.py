"""Build promerge_d2 as pyproject.toml says."""

from setuptools import setup

setup()
