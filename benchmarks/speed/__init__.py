"""Measurements of the labeler beside the released way; see docs/benchmark.md."""
