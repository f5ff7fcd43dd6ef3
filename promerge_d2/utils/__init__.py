"""Helpers that several rooms share: errors, command lines, files."""
