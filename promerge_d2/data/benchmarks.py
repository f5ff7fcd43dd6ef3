"""The benchmarks by name: where their files are, how they are made, what the papers report.

Names, folders and files are those that users of CutLER know, under ``$DETECTRON2_DATASETS``, so
that its ready-made class-agnostic files are read where they are. ``datasets/prepare_*.py`` makes
the same files out of the official ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promerge_d2.utils.errors import UserError


@dataclass(frozen=True)
class DataSet:
    """A ground truth to score on.

    Attributes:
        name: the registered or given name.
        title: for tables.
        json_file: the ground truth.
        image_root: where its images are.
        how: what makes the files, for the message when they are missing.
        images: how many images the whole set has, None where that is not known.
    """

    name: str
    title: str
    json_file: Path
    image_root: Path
    how: str = "give paths that exist"
    images: int | None = None

    def missing(self, images_too: bool) -> str | None:
        """Say why the data set cannot be used; None if it can.

        Args:
            images_too: whether the images are needed.
        """
        paths = [self.json_file, *([self.image_root] if images_too else [])]
        lacking = [str(path) for path in paths if not path.exists()]
        return f"{' and '.join(lacking)} missing; {self.how}" if lacking else None


@dataclass(frozen=True, kw_only=True)
class Benchmark(DataSet):
    """A public data set, as the papers score on it; paths are under ``$DETECTRON2_DATASETS``.

    Attributes:
        prepare: the tool that makes ``json_file``, with its options.
        page: where the official files are.
        official: a file that serves as it is where ``json_file`` is missing.
    """

    prepare: str
    page: str
    official: str | None = None

    def under(self, root: Path) -> DataSet:
        """Find the files under ``$DETECTRON2_DATASETS``; nothing is read.

        ``official`` is taken where only that exists.
        """
        json_file = root / self.json_file
        if self.official and not json_file.exists() and (root / self.official).exists():
            json_file = root / self.official
        how = f"get the official files from {self.page}, then: python datasets/{self.prepare}"
        image_root = root / self.image_root
        return DataSet(self.name, self.title, json_file, image_root, how, self.images)


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "cls_agnostic_coco",
            "COCO val2017",
            Path("coco/annotations/coco_cls_agnostic_instances_val2017.json"),
            Path("coco/val2017"),
            prepare="prepare_coco.py",
            page="https://cocodataset.org/#download",
            images=5000,
            official="coco/annotations/instances_val2017.json",
        ),
        Benchmark(
            "cls_agnostic_coco20k",
            "COCO20K",
            Path("coco/annotations/coco20k_trainval_gt.json"),
            Path("coco/train2014"),
            prepare="prepare_coco20k.py",
            page="https://cocodataset.org/#download",
            images=19817,
        ),
        Benchmark(
            "cls_agnostic_lvis",
            "LVIS",
            Path("coco/annotations/lvis1.0_cocofied_val_cls_agnostic.json"),
            Path("coco"),
            prepare="prepare_lvis.py",
            page="https://www.lvisdataset.org/dataset",
            images=19809,
        ),
        Benchmark(
            "cls_agnostic_kitti",
            "KITTI",
            Path("kitti/annotations/trainval_cls_agnostic.json"),
            Path("kitti"),
            prepare="prepare_kitti.py",
            page="https://www.cvlibs.net/datasets/kitti/eval_object.php",
            images=7481,
        ),
        Benchmark(
            "cls_agnostic_objects365_16-40",
            "Objects365",
            Path("objects365/annotations/objects365_16-40.json"),
            Path("objects365/val"),
            prepare="prepare_objects365.py",
            page="https://www.objects365.org/download.html",
        ),
        Benchmark(
            "cls_agnostic_sa1b",
            "SA-1B",
            Path("sa1b/annotations/sa1b.json"),
            Path("sa1b"),
            prepare="prepare_sa1b.py",
            page="https://ai.meta.com/datasets/segment-anything-downloads",
        ),
        Benchmark(
            "cls_agnostic_objects365",
            "Objects365 val",
            Path("objects365/annotations/zhiyuan_objv2_val_cls_agnostic.json"),
            Path("objects365/val"),
            prepare="prepare_objects365.py --patches all",
            page="https://www.objects365.org/download.html",
            images=80000,
        ),
        Benchmark(
            "cls_agnostic_lvis_v0.5",
            "LVIS v0.5",
            Path("coco/annotations/lvis0.5_cocofied_val_cls_agnostic.json"),
            Path("coco"),
            prepare="prepare_lvis.py --version v0.5",
            page="https://www.lvisdataset.org/dataset",
            images=5000,
        ),
        Benchmark(
            "cls_agnostic_voc",
            "VOC 2007",
            Path("voc/annotations/trainvaltest_2007_cls_agnostic.json"),
            Path("voc"),
            prepare="prepare_voc.py",
            page="http://host.robots.ox.ac.uk/pascal/VOC/voc2007",
            images=9963,
        ),
        Benchmark(
            "cls_agnostic_openimages",
            "OpenImages",
            Path("openImages/annotations/openimages_val_cls_agnostic.json"),
            Path("openImages/validation"),
            prepare="prepare_openimages.py",
            page="https://storage.googleapis.com/openimages/web/download_v7.html",
        ),
        Benchmark(
            "cls_agnostic_uvo",
            "UVO",
            Path("uvo/annotations/val_sparse_cleaned_cls_agnostic.json"),
            Path("uvo/all_UVO_frames"),
            prepare="prepare_uvo.py",
            page="https://sites.google.com/view/unidentified-video-object/dataset",
        ),
        *(
            Benchmark(
                f"cls_agnostic_{style}",
                style.capitalize(),
                Path(f"{style}/annotations/traintest_cls_agnostic.json"),
                Path(style),
                prepare=f"prepare_{style}.py",
                page="https://naoto0804.github.io/cross_domain_detection",
                images=images,
            )
            for style, images in (("clipart", 1000), ("watercolor", 2000), ("comic", 2000))
        ),
    )
}

# the six of the ProMerge paper, in its order
SIX = tuple(list(BENCHMARKS)[:6])

# AP, README of the ProMerge release; masks for COCO, COCO20K and LVIS (inferred from CutLER's own
# figures), boxes for KITTI and Objects365 (presumably, as CutLER has no masks there).
PUBLISHED = {
    "MaskCut": (2.2, 3.0, 0.9, 0.2, 1.7, 0.8),
    "ProMerge": (2.4, 3.0, 1.3, 0.3, 2.2, 1.2),
    "CutLER, one round": (8.7, 8.9, 3.4, 3.9, 11.5, 5.5),
    "ProMerge+": (8.9, 9.0, 4.0, 5.4, 12.2, 7.8),
}
PUBLISHED_SOURCE = (
    "AP as the README of the ProMerge release reports it (arXiv 2409.18961). Which of the columns "
    "are masks and which boxes is inferred, the Objects365 subset too (val patches 16-40, from a "
    "file name); no AR is published in absolute figures. Others could reproduce MaskCut and CutLER "
    "only to about 1 AP (CutLER's issue 70)."
)


def published(name: str) -> dict[str, float]:
    """Return the published AP by method, in per cent; empty where there is none."""
    if name not in SIX:
        return {}
    return {method: row[SIX.index(name)] for method, row in PUBLISHED.items()}


def choose_data_sets(
    names: Sequence[str], root: Path, own: Sequence[DataSet] = ()
) -> list[DataSet]:
    """Choose data sets to score on.

    Args:
        names: names with or without ``cls_agnostic_``, ``six`` for the benchmarks of the paper,
            ``all`` for every known one.
        root: ``$DETECTRON2_DATASETS``.
        own: data sets of the user, which are chosen in any case.

    Returns:
        Each data set once, those of the user last.

    Raises:
        UserError: an unknown name.
    """
    known = {benchmark.name: benchmark.under(root) for benchmark in BENCHMARKS.values()}
    known |= {data_set.name: data_set for data_set in own}
    chosen: dict[str, DataSet] = {}
    for name in names:
        group = {"all": list(known), "six": list(SIX)}.get(name)
        for one in group or [name if name in known else f"cls_agnostic_{name}"]:
            if one not in known:
                short = ", ".join(n.removeprefix("cls_agnostic_") for n in known)
                raise UserError(f"no data set is named {name!r}; choose all, six, or from {short}")
            chosen[one] = known[one]
    chosen |= {data_set.name: data_set for data_set in own}
    return list(chosen.values())
