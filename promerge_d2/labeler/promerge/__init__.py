"""ProMerge's labeler: point prompts, background vote, cascade filter, merging."""
