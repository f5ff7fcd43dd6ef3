"""Measure the package: speed and ablations; not part of the wheel."""
