"""Masks of the patch grid to masks of pixels."""
