"""How fast things are: ``tools/benchmark.py``.

A benchmark is a module of this folder with a function ``measure(args)``. It takes the options of
``tools/benchmark.py`` and returns ``benchmarks.report.Results``. The option that asks for it is its
name here, ``--NAME``; the first is measured without an option.
"""

BENCHMARKS = {
    "labelers": "measure the labelers and the device (default)",
    "store": "measure the store of labels and its workers instead",
    "pipeline": "measure what the work around the network sustains instead, stored features in the "
    "network's place (docs/scaling.md)",
    "evaluation": "measure evaluation instead, beside plain pycocotools on synthetic detections "
    "(docs/zero_shot.md); takes no images",
    "training": "measure the training recipe instead: 200 iterations of it on a GPU, 20 small ones "
    "on a CPU; takes --images with --labels (the sample scenes)",
}
"""Module to what its option's help says."""
