"""Pseudo-label and ground-truth data sets in detectron2's catalog."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata

from promerge_d2.data.benchmarks import BENCHMARKS
from promerge_d2.data.lazy import LazyCoco
from promerge_d2.utils.errors import UserError

CLASS_NAME = "object"
PERCENTAGES = (1, 2, 5, 10, 20, 30, 40, 50, 60, 80)  # of COCO's labels (docs/recipe.md)


def register_promerge_instances(
    name: str, json_file: str | os.PathLike, image_root: str | os.PathLike, how: str = ""
) -> None:
    """Register a COCO-style file as a data set of one class.

    Nothing is read before the data set is asked for, and then no more than is looked at: see
    ``LazyCoco``. Whatever categories the file has, all its objects become the class ``object``;
    ``score`` is kept. Registering the same again changes nothing.

    Args:
        name: the name for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        json_file: pseudo-labels (as ``promerge label`` writes them) or ground truth.
        image_root: the folder that the file names in it start from.
        how: what makes the files, for the message when they are missing.

    Raises:
        UserError: the name is taken by other files.
    """
    json_file, image_root = str(json_file), str(image_root)
    if name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(name)
        taken = (metadata.get("json_file"), metadata.get("image_root"))
        if taken != (json_file, image_root):
            raise UserError(
                f"the data set {name} is registered already, with {taken[0]} and {taken[1]}; "
                f"choose another name for {json_file} and {image_root}"
            )
        return
    DatasetCatalog.register(name, lambda: LazyCoco(json_file, image_root))
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="class_agnostic",
        thing_classes=[CLASS_NAME],
        how=how,
    )


def register_from_config(cfg: CfgNode) -> None:
    """Register the data sets that ``cfg.DATASETS.PROMERGE`` lists.

    Raises:
        UserError: an entry is not ``[name, json, image folder]``, or its name is taken.
    """
    for entry in cfg.DATASETS.PROMERGE:
        match entry:
            case [str() as name, str() as json_file, str() as image_root]:
                pass
            case _:
                raise UserError(
                    f"DATASETS.PROMERGE lists [name, json, image folder] each, not {entry!r}"
                )
        register_promerge_instances(name, _expand(json_file), _expand(image_root))


def check_datasets(names: list[str] | tuple[str, ...]) -> None:
    """Refuse data sets that are not registered or whose files are not there.

    Raises:
        UserError: one message for all of them, with near matches, or with the missing files and
            the commands that make them.
    """
    known = DatasetCatalog.list()
    problems = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"near matches: {', '.join(near)}" if near else "no registered name is near"
            problems.append(
                f"the data set {name!r} is not registered ({hint}); register your own with "
                f'DATASETS.PROMERGE \'[["{name}", "labels.json", "image_folder"]]\''
            )
            continue
        metadata = MetadataCatalog.get(name)
        missing = [
            path
            for path in (metadata.get("json_file"), metadata.get("image_root"))
            if path and not os.path.exists(path)
        ]
        if missing:
            how = "get them from where the data set is published"
            if metadata.get("evaluator_type") == "class_agnostic":
                how = (
                    f"label images with: promerge label --preset release "
                    f"{metadata.get('image_root')} --output {metadata.get('json_file')}"
                )
            problems.append(
                f"the data set {name!r} needs {' and '.join(missing)}, which "
                f"{'is' if len(missing) == 1 else 'are'} not there; {metadata.get('how') or how}"
            )
    if problems:
        raise UserError("\n".join(problems))


# by name: the file and its image folder under $DETECTRON2_DATASETS, and what makes the file
BUILTINS = {
    "imagenet_promerge_train": (
        "imagenet/annotations/promerge_release_train.json",
        "imagenet/train",
        "get the ImageNet-1K training images from image-net.org into $DETECTRON2_DATASETS/"
        "imagenet/train, then label them: promerge label --preset release "
        "$DETECTRON2_DATASETS/imagenet/train --output $DETECTRON2_DATASETS/imagenet/"
        "annotations/promerge_release_train.json",
    ),
    **{
        f"imagenet_promerge_train_r{number}": (
            f"imagenet/annotations/promerge_train_r{number}.json",
            "imagenet/train",
            "self-training makes it (promerge self-train --help, docs/self_training.md): link "
            "that round's labels there",
        )
        for number in (1, 2)
    },
}


def datasets_root() -> Path:
    """``$DETECTRON2_DATASETS``, or ``datasets`` as detectron2 has it."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_builtins() -> None:
    """Register the data sets that the shipped configs name; nothing is read."""
    root = datasets_root()
    for name, (json_file, image_root, how) in BUILTINS.items():
        register_promerge_instances(name, root / json_file, root / image_root, how)


def register_benchmarks() -> None:
    """Register the zero-shot benchmarks under ``$DETECTRON2_DATASETS``; nothing is read."""
    for benchmark in BENCHMARKS.values():
        found = benchmark.under(datasets_root())
        register_promerge_instances(found.name, found.json_file, found.image_root, found.how)


def register_semi_supervised() -> None:
    """Register shares of COCO's labelled images, with its classes; nothing is read."""
    root = datasets_root()
    images = str(root / "coco/train2017")
    coco = _get_builtin_metadata("coco")
    classes = coco["thing_dataset_id_to_contiguous_id"]
    for percentage in PERCENTAGES:
        name = f"coco_semi_{percentage}perc"
        file = str(root / f"coco/annotations/{percentage}perc_instances_train2017.json")
        DatasetCatalog.register(name, lambda file=file: LazyCoco(file, images, classes))
        MetadataCatalog.get(name).set(
            json_file=file,
            image_root=images,
            evaluator_type="coco",
            how="get COCO's train2017 from cocodataset.org and the shares of its labels from "
            "dl.fbaipublicfiles.com/cutler/coco-smi/annotations.zip, or draw your own: "
            f"python datasets/prepare_coco_semi.py --percentage {percentage}",
            **coco,
        )


def _expand(path: str) -> str:
    path = path.replace("$DETECTRON2_DATASETS", str(datasets_root()))
    return os.path.expanduser(os.path.expandvars(path))
