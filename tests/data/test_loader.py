import collections
import copy
import itertools

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from promerge_d2.data import lazy
from promerge_d2.data.loader import (
    BatchStream,
    Draw,
    MappedDraws,
    build_loader,
    training_images,
)
from promerge_d2.utils.errors import UserError
from tests.helpers import coco_json, square


def indices(stream, count):
    """The indices of the first batches of a stream."""
    return [[draw.index for draw in batch] for batch in itertools.islice(stream, count)]


# The order


def test_every_epoch_has_every_image_once_and_another_order():
    found = list(itertools.chain(*indices(BatchStream(10, 2, seed=3), 20)))
    epochs = [found[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_a_batch_may_reach_into_the_next_epoch():
    found = list(itertools.chain(*indices(BatchStream(5, 3, seed=0), 5)))
    assert collections.Counter(found) == dict.fromkeys(range(5), 3)


def test_the_order_follows_from_the_seed():
    first, same, other = (indices(BatchStream(50, 5, seed=seed), 10) for seed in (1, 1, 2))
    assert first == same != other


def test_what_a_draw_says():
    stream = BatchStream(8, 4, seed=6, rank=1, world_size=2)
    stream.start = 7
    batch = next(iter(stream))
    assert [(draw.seed, draw.iteration, draw.place) for draw in batch] == [(6, 7, 2), (6, 7, 3)]


class Counted(BatchStream):
    """Images in the order of their numbers."""

    def _order(self):
        return itertools.cycle(range(self.size))


def test_images_wait_for_others_of_their_orientation():
    # 0 wide, 1 high, 2 high, 3 wide, 4 wide and again from the start, in threes:
    # wide 0 3 4 | 0 3 4, high 1 2 1 | 2 1 2; a batch comes when its last image does.
    portrait = np.array([False, True, True, False, False])
    stream = Counted(5, 3, 0, portrait)
    assert indices(stream, 4) == [[0, 3, 4], [1, 2, 1], [0, 3, 4], [2, 1, 2]]
    assert indices(Counted(5, 3, 0), 3) == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_stream_that_starts_later_goes_on_as_one_that_did_not(grouped):
    portrait = np.random.default_rng(0).random(30) < 0.3 if grouped else None
    whole = list(itertools.islice(BatchStream(30, 4, 5, portrait), 60))
    for start in (1, 13, 59):
        stream = BatchStream(30, 4, 5, portrait)
        stream.start = start
        assert list(itertools.islice(stream, 60 - start)) == whole[start:]


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_processes_share_the_batch_of_one(world_size):
    portrait = np.arange(20) % 3 == 0
    whole = list(itertools.islice(BatchStream(20, 6, 5, portrait), 15))
    parts = [
        itertools.islice(BatchStream(20, 6, 5, portrait, rank, world_size), 15)
        for rank in range(world_size)
    ]
    assert [list(itertools.chain(*batches)) for batches in zip(*parts, strict=True)] == whole


def test_a_batch_that_cannot_be_shared_out():
    with pytest.raises(UserError, match=r"IMS_PER_BATCH.* 4\b.* 3\b"):
        BatchStream(10, 4, 0, rank=0, world_size=3)


# Mapping


def noisy(record):
    return record["number"], float(np.random.rand())


def test_an_examples_chance_is_its_own():
    dataset = MappedDraws([{"number": number} for number in range(3)], noisy)
    draw = Draw(index=1, seed=4, iteration=9, place=0)
    first = dataset[draw]
    np.random.rand(5)
    assert dataset[draw] == first
    assert first[0] == 1
    others = [draw._replace(**{name: 5}) for name in ("seed", "iteration", "place")]
    assert len({first[1], *(dataset[other][1] for other in others)}) == 4


def test_examples_do_not_depend_on_the_number_of_workers():
    dataset = MappedDraws([{"number": number} for number in range(9)], noisy)
    found = []
    for workers in (0, 1, 2):
        loader = build_loader(dataset, BatchStream(9, 3, 2), workers)
        loader.batch_sampler.start = 4
        found.append(list(itertools.islice(loader, 8)))
    assert found[0] == found[1] == found[2]
    assert len({value for batch in found[0] for _, value in batch}) == 24


# The images


@pytest.fixture
def registered(tmp_path):
    """A lazy data set: wide, high and square images, the last without objects."""

    def image(number, height, width, *objects):
        return f"{number}.png", height, width, objects

    crowd = {"mask": square(30, 20, 0, 0, 5, 5), "iscrowd": 1}
    file = coco_json(
        tmp_path / "labels.json",
        [
            image(0, 20, 30, square(20, 30, 1, 1, 9, 9)),
            image(1, 30, 20, square(30, 20, 1, 1, 9, 9)),
            image(2, 30, 20, crowd),
            image(3, 20, 20, square(20, 20, 1, 1, 9, 9)),
            image(4, 20, 20),
        ],
    )
    DatasetCatalog.register("loader_test", lambda: lazy.LazyCoco(file, tmp_path))
    yield "loader_test"
    DatasetCatalog.remove("loader_test")


def names(images):
    return [record["file_name"].rsplit("/", 1)[1] for record in images.dicts]


def test_all_images_and_their_orientation(registered):
    images = training_images([registered])
    assert names(images) == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert images.portrait.tolist() == [False, True, True, True, True]


def test_images_that_are_left_out(registered):
    images = training_images([registered, registered], lambda record: record["annotations"])
    assert names(images) == ["0.png", "1.png", "2.png", "3.png"] * 2
    assert images.portrait.tolist() == [False, True, True, True] * 2


def test_a_dict_is_read_once(registered, monkeypatch):
    read = []
    real = lazy.read_image

    def spy(json_file, stamp, where):
        read.append(where)
        return real(json_file, stamp, where)

    monkeypatch.setattr(lazy, "read_image", spy)
    training_images([registered], lambda record: record["annotations"])
    assert len(read) == len(set(read)) == 5


def test_no_image_is_left(registered):
    with pytest.raises(UserError, match=r"loader_test"):
        training_images([registered], lambda record: False)


def test_plain_dicts_are_images_too():
    records = [{"height": 3, "width": 4, "annotations": []}]
    DatasetCatalog.register("plain_test", lambda: copy.deepcopy(records))
    try:
        images = training_images(["plain_test"])
    finally:
        DatasetCatalog.remove("plain_test")
    assert list(images.dicts) == records
