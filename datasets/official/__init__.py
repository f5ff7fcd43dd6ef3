"""Readers of the benchmarks' official files, and the writer of class-agnostic ground truth."""
