"""MaskCut's labeler: normalised cuts."""
