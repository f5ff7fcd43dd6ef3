"""Memory and speed of everything that meets a whole data set, on records made up.

    python -m tests.pseudo_labels.scale --images 100000

Two masks an image, 640 x 480 pixels, outlines as ragged as refined ones (about 400 bytes each).
Every step runs in a process of its own; its memory is the highest that the system counted for it
(mapped files aside), less that of the same process before it began.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np

from promerge_d2.coco.check import validate_labels
from promerge_d2.coco.records import mask_record
from promerge_d2.pseudo_labels.importing import import_labels
from promerge_d2.pseudo_labels.inputs import ImageFile, ImageList
from promerge_d2.pseudo_labels.label import open_store
from promerge_d2.pseudo_labels.merge import merge_labels
from promerge_d2.pseudo_labels.store import make_folder

MASKS = 2


def ragged_mask(number):
    """An ellipse with a rough outline in 480 x 640 pixels."""
    chance = np.random.default_rng(number)
    rows, columns = np.mgrid[:480, :640]
    (y, x), (a, b) = chance.uniform(120, 360, 2), chance.uniform(50, 110, 2)
    rough = chance.normal(0, 0.03, (480, 1)) + chance.normal(0, 0.03, (1, 640))
    return ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 + rough < 1


def make_store(output, images, shards=4):
    """A store as ``label_images`` leaves it."""
    names = [f"n{n // 1300:05d}/image_{n:08d}.JPEG" for n in range(images)]
    files = tuple(ImageFile(n + 1, name, 100_000 + n) for n, name in enumerate(names))
    store = open_store(Path(output), ImageList(Path(output).parent, files), {"made": "up"})
    records = [mask_record(ragged_mask(number)) for number in range(200)]
    for shard in range(shards):
        folder = make_folder(store.shard(shard, shards))
        writer = store.writer(folder)
        for place in range(shard, images, shards):
            content = {"id": place + 1, "file_name": names[place], "width": 640, "height": 480}
            if place % 10 == 9:
                content |= {"reason": "no_foreground", "masks": []}
            else:
                content["masks"] = [
                    {**records[(place * MASKS + k) % 200], "score": round(1 / (1 + k), 3)}
                    for k in range(MASKS + place % 10 // 8)
                ]
            writer.append("records", place, content)
        writer.close()


def read_back(path):
    """What detectron2 does to train on it, to its loader's list."""
    from detectron2.data import DatasetFromList
    from detectron2.data.build import filter_images_with_only_crowd_annotations

    from promerge_d2.data.lazy import LazyCoco

    dicts = list(LazyCoco(path, "images"))
    dicts = filter_images_with_only_crowd_annotations(dicts)
    kept = DatasetFromList(dicts, copy=False)
    print(f"    the loader keeps {kept._lst._lst.numel() / len(kept):.0f} bytes an image")


def read_back_whole(path):
    """The same with detectron2's own reader, to compare."""
    from detectron2.data import DatasetFromList
    from detectron2.data.datasets.coco import load_coco_json

    kept = DatasetFromList(load_coco_json(path, "images", None, ["score"]), copy=False)
    print(f"    the loader keeps {kept._lst._lst.numel() / len(kept):.0f} bytes an image")


def anonymous():
    """Memory of this process that no file stands behind, in MB: now, and the highest so far."""
    fields = dict(
        line.split(":")
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":" in line
    )
    return int(fields["RssAnon"].split()[0]) / 1024


def watched(work, arguments):
    """Run, sampling memory: seconds of the processor, MB."""
    import threading

    from detectron2.data import DatasetFromList  # noqa: F401 - counted as before
    from detectron2.data.datasets.coco import load_coco_json  # noqa: F401

    before, peak, done = anonymous(), [0.0], threading.Event()

    def sample():
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous())

    thread = threading.Thread(target=sample)
    thread.start()
    started = time.process_time()  # other programs may be at work
    work(*arguments)
    seconds = time.process_time() - started
    done.set()
    thread.join()
    return seconds, peak[0] - before


def measure(work, *arguments):
    """Processor seconds and MB of ``work`` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(watched, (work, arguments))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--whole", action="store_true", help="detectron2's own reader too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/labels.json"
        started = time.perf_counter()
        make_store(output, args.images)
        print(f"made in {time.perf_counter() - started:.0f} s", flush=True)
        steps = {
            "merge": (merge_labels, output),
            "validate": (validate_labels, output),
            "import": (import_labels, output, f"{folder}/imported.json"),
            "read back": (read_back, output),
        }
        if args.whole:
            steps["read back, detectron2's own"] = (read_back_whole, output)
        for name, step in steps.items():
            seconds, memory = measure(*step)
            print(
                f"{name}: {seconds:.1f} s ({args.images / seconds:.0f} images/s), "
                f"{memory:.0f} MB ({1e6 * memory / args.images:.0f} bytes an image)",
                flush=True,
            )
        size = Path(output).stat().st_size
        print(f"labels.json: {size / 1e6:.0f} MB, {size / args.images:.0f} bytes an image")


if __name__ == "__main__":
    main()
