"""Training batches that follow from a seed and an iteration alone.

detectron2's loader starts its order of images anew when a run is resumed, loses the images that
wait for others of their shape, and draws in each worker from a state that nothing keeps. Here the
order, the grouping and every draw are functions of (seed, iteration, place in the batch): a run
that was stopped goes on as if it had not been, with any number of workers, and N processes with
the same global batch see the images of one.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MapDataset,
    get_detection_dataset_dicts,
)
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from promerge_d2.data.copy_paste import CopyPasteMapper
from promerge_d2.data.mapper import LabelMapper
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.seeding import IMAGE, ORDER, seeded_generator


class Draw(NamedTuple):
    """An image of a batch."""

    index: int  # type: ignore[assignment] # in the data set; hides tuple's method
    seed: int
    iteration: int
    place: int  # in the global batch


class TrainingImages(NamedTuple):
    """The images to train on."""

    dicts: Sequence[dict]
    portrait: np.ndarray  # (len(dicts),) bool: higher than wide, or square


class BatchStream(Sampler[list[Draw]]):
    """The endless order of the training images, in batches, from any iteration on.

    Every epoch is a new permutation of all images. With ``portrait`` given, a batch holds images
    of one orientation only, so that little is padded: images wait for others of theirs, across
    epochs. The waiting ones of an earlier iteration are found by going through the order again,
    without looking at any image.

    Args:
        size: number of images.
        batch: images an iteration, of all processes.
        seed: of the order.
        portrait: (size,) bool, the images' orientation, or None not to group.
        rank: of this process, which gets the ``rank``-th part of each batch.
        world_size: number of processes.

    Attributes:
        seed: may be changed before iterating.
        start: the first iteration to give.

    Raises:
        UserError: the batch cannot be shared out evenly.
    """

    def __init__(
        self,
        size: int,
        batch: int,
        seed: int,
        portrait: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch < 1 or batch % world_size:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH is {batch}, the images of all {world_size} processes "
                f"together: it must be a multiple of {world_size}"
            )
        self.size = size
        self.batch = batch
        self.seed = seed
        self.portrait = portrait
        self.places = range(rank * batch // world_size, (rank + 1) * batch // world_size)
        self.start = 0

    def __iter__(self) -> Iterator[list[Draw]]:
        batches = enumerate(self._batches())
        for iteration, indices in itertools.islice(batches, self.start, None):
            yield [Draw(indices[place], self.seed, iteration, place) for place in self.places]

    def _batches(self) -> Iterator[list[int]]:
        waiting: tuple[list[int], list[int]] = ([], [])
        for index in self._order():
            group = waiting[0 if self.portrait is None else int(self.portrait[index])]
            group.append(index)
            if len(group) == self.batch:
                yield group[:]
                group.clear()

    def _order(self) -> Iterator[int]:
        for epoch in itertools.count():
            rng = np.random.default_rng((ORDER, self.seed, epoch))
            yield from rng.permutation(self.size).tolist()


def map_or_error(mapper: Callable[[dict], dict], record: dict) -> dict | UserError:
    """Map a dict, or return what is wrong with it, which ``ExampleLoader`` raises.

    Raised in a loader's process, it would come out amid a traceback.

    Args:
        mapper: turns a dict into an example.
        record: the dict.

    Returns:
        The example, or the error.
    """
    try:
        return mapper(record)
    except UserError as error:
        return error


class MappedDraws(Dataset):
    """Training examples, each mapped with chance of its own.

    Args:
        dicts: detectron2's dicts.
        mapper: turns a dict into an example; it may draw from Python's, numpy's and torch's
            global generators.
    """

    def __init__(self, dicts: Sequence[dict], mapper: Callable[[dict], dict]) -> None:
        self.dicts = dicts
        self.mapper = mapper

    def __getitem__(self, draw: Draw) -> dict | UserError:
        with seeded_generator(IMAGE, draw.seed, draw.iteration, draw.place):
            return map_or_error(self.mapper, self.dicts[draw.index])


class ExampleLoader(DataLoader):
    """A loader that raises what was wrong with an example, see ``map_or_error``."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            for example in batch:
                if isinstance(example, UserError):
                    raise example
            yield batch


class TrainLoader(ExampleLoader):
    """A loader of ``MappedDraws``."""

    dataset: MappedDraws
    batch_sampler: BatchStream


def build_test_loader(
    names: Sequence[str], mapper: Callable[[dict], dict], num_workers: int
) -> ExampleLoader:
    """Build the loader of data sets to evaluate on.

    Args:
        names: registered data sets.
        mapper: turns a dict into an example.
        num_workers: processes that map.

    Returns:
        A loader of lists of one example, of this process's part of the images.
    """
    dicts = get_detection_dataset_dicts(list(names), filter_empty=False)
    return ExampleLoader(
        MapDataset(DatasetFromList(dicts, copy=False), functools.partial(map_or_error, mapper)),
        sampler=InferenceSampler(len(dicts)),
        num_workers=num_workers,
        collate_fn=trivial_batch_collator,
    )


def training_images(
    names: Sequence[str],
    keep: Callable[[dict], bool] | None = None,
    need_masks: bool = False,
) -> TrainingImages:
    """List the images of data sets; each one's dict is read once.

    Args:
        names: registered data sets.
        keep: whether to train on a dict's image; None: on all.
        need_masks: whether every object has to have a mask.

    Returns:
        The dicts, serialised, and which of the images are portraits.

    Raises:
        UserError: no image is left, or an object has no mask.
    """
    kept, portrait = [], bytearray()
    for name in names:
        for item in DatasetCatalog.get(name):
            record = copy.copy(item)  # a lazy item is read here, and only here
            if keep is None or keep(record):
                kept.append(item)
                portrait.append(record["height"] >= record["width"])
                if need_masks and not all(
                    "segmentation" in a for a in record.get("annotations", ())
                ):
                    raise UserError(
                        f"the data set {name} has boxes without masks, such as those of "
                        f"{record['file_name']}: set MODEL.MASK_ON False, or take other data"
                    )
    if not kept:
        raise UserError(f"{', '.join(names) or 'DATASETS.TRAIN'}: no image has anything to learn")
    return TrainingImages(DatasetFromList(kept, copy=False), np.frombuffer(portrait, bool))


def build_loader(dataset: MappedDraws, stream: BatchStream, num_workers: int = 0) -> TrainLoader:
    """Map the batches of a stream.

    Args:
        dataset: maps the images.
        stream: the order; ``start`` and ``seed`` count when the loader's iterator is made.
        num_workers: processes that map; the examples do not depend on it.

    Returns:
        A loader of lists of examples.
    """
    return TrainLoader(
        dataset,
        batch_sampler=stream,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator,
        generator=torch.Generator(),  # its seeds for workers are not the model's to draw
    )


def build_train_loader(
    names: Sequence[str],
    mapper: LabelMapper,
    *,
    batch: int,
    seed: int,
    paste: dict | None = None,
    filter_empty: bool = True,
    group_by_orientation: bool = True,
    num_workers: int = 0,
) -> DataLoader:
    """Build the loader of this process's part of the batches of some data sets.

    Args:
        names: registered data sets.
        mapper: turns a dict into an example.
        batch: images an iteration, of all processes.
        seed: of all that is drawn.
        paste: ``rate``, ``min_ratio`` and ``max_ratio`` of ``CopyPasteMapper``, or None.
        filter_empty: leave out images without anything to train on.
        group_by_orientation: a batch has images of one orientation, and so have donors.
        num_workers: processes that map.

    Returns:
        An endless loader of lists of examples.

    Raises:
        UserError: no image is left, or the batch cannot be shared out.
    """
    keep = mapper.choice.has_target if filter_empty else None
    images = training_images(names, keep, mapper.use_instance_mask)
    portrait = images.portrait if group_by_orientation else None
    places = comm.get_rank(), comm.get_world_size()
    stream = BatchStream(len(images.dicts), batch, seed, portrait, *places)
    whole = CopyPasteMapper(mapper, images.dicts, **paste, portrait=portrait) if paste else mapper
    return build_loader(MappedDraws(images.dicts, whole), stream, num_workers)
