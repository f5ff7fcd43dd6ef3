"""Command lines: parsers and options that several tools share."""
