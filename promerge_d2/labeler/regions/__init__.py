"""The labeler of preset ``best``: regions of all scales, scored."""
