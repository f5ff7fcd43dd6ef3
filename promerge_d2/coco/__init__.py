"""COCO JSON files: reading, checking and writing them, RLE, records."""
