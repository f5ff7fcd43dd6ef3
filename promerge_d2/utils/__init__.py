"""Helpers that several rooms share: errors, files, images, seeds, threads."""
