"""The benchmarks of zero-shot transfer: official files to one class, and one command for all."""
