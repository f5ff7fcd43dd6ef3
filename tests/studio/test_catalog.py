"""Questions about all photographs, against going through them one by one."""

import itertools

import numpy as np
import pytest

from promerge_d2.coco.index import CocoIndex
from promerge_d2.studio.catalog import SIZES, Catalog, Keep, Wanted
from tests.studio.conftest import HEIGHT, MASKS, WIDTH


def slowly(session, keep, wanted):
    """What ``Session.find`` gives, from the photographs' own descriptions."""
    found = []
    for place in range(len(session.catalog)):
        photo = session.photograph(place, "small")
        kept = [
            mask
            for mask in photo["masks"]
            if mask["state"] == "accepted"
            or (
                mask["state"] == "open"
                and mask["score"] >= np.float32(keep.score)
                and (keep.best is None or mask["rank"] < keep.best)
            )
        ]
        low, high = SIZES.get(wanted.size, (0, 2))
        best = max((mask["score"] for mask in kept), default=None)
        edited = photo["reviewed"] or any(m["state"] != "open" for m in photo["masks"])
        status = {
            "any": True,
            "todo": not photo["reviewed"],
            "edited": edited,
            "reviewed": photo["reviewed"],
        }
        if (
            wanted.text.lower() in photo["name"]
            and wanted.reason in ("", photo["reason"])
            and wanted.least <= len(kept) <= (9 if wanted.most is None else wanted.most)
            and (not wanted.size or any(low <= mask["share"] < high for mask in kept))
            and (wanted.low is None or (best is not None and best >= np.float32(wanted.low)))
            and (wanted.high is None or (best is not None and best <= np.float32(wanted.high)))
            and status[wanted.status]
        ):
            found.append((place, len(kept), best))
    return found


WANTED = [
    Wanted(),
    Wanted(text="A/"),
    Wanted(reason="no_regions"),
    Wanted(least=2),
    Wanted(most=1),
    Wanted(least=1, most=2),
    *(Wanted(size=size) for size in SIZES),
    Wanted(low=0.7),
    Wanted(high=0.7),
    Wanted(low=0.5, high=0.8),
    *(Wanted(status=status) for status in ("todo", "edited", "reviewed")),
    Wanted(text="a", least=1, size="large", low=0.4),
]


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_photographs_that_are_like_it(session, wanted):
    session.edit(0, "reject", [1])
    session.edit(1, "accept", [0])
    session.edit(2, "finish", [0, 2])
    for keep in itertools.starmap(Keep, itertools.product((0, 0.2, 0.41), (None, 1, 2))):
        found = session.find(keep, wanted)
        expected = slowly(session, keep, wanted)
        assert found["numbers"] == [place for place, _, _ in expected], keep
        assert found["masks"] == sum(count for _, count, _ in expected)
        everywhere = slowly(session, keep, Wanted())
        assert found["kept"] == sum(count for _, count, _ in everywhere)
        assert found["with_masks"] == sum(count > 0 for _, count, _ in everywhere)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("file", [0, 1, 2, 3, 4, 5]),
        ("name", [0, 1, 2, 3, 4, 5]),
        ("most", [0, 1, 2, 3, 4, 5]),
        ("fewest", [5, 4, 2, 3, 0, 1]),
        ("best", [0, 1, 2, 3, 4, 5]),
        ("worst", [5, 4, 3, 2, 1, 0]),
    ],
)
def test_orders(session, order, expected):
    keep = Keep(0.15)  # on the photographs: 3, 2, 2, 2, 1 and 0 masks
    session.edit(1, "accept", [0])
    session.edit(2, "reject", [2])
    counts = [len(session.find(keep, Wanted(order=order))["numbers"])]
    assert counts == [6]
    numbers = session.find(keep, Wanted(order=order))["numbers"]
    if order in ("most", "fewest"):
        kept = dict(enumerate([3, 3, 1, 2, 1, 0]))
        expected = sorted(kept, key=lambda n: kept[n] * (1 if order == "fewest" else -1))
    assert numbers == expected


def test_columns(labels):
    catalog = Catalog(labels)
    assert catalog.rank[:3].tolist() == [2, 0, 1]
    areas = [mask.sum() / (HEIGHT * WIDTH) for _, mask in MASKS]
    assert catalog.share[:3] == pytest.approx(areas)
    assert catalog.reason_counts() == [("no_regions", 1)]
    assert sum(catalog.score_histogram(0, 1)) == 13  # two have fallen below 0
    assert catalog.categories == [{"id": 1, "name": "object"}]


def test_a_second_start_takes_the_index_of_the_first(labels, monkeypatch, tmp_path, caplog):
    first = Catalog(labels)
    (cached,) = (tmp_path / "cache" / "studio").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(CocoIndex, "__init__", None)
        second = Catalog(labels)
    for name in ("owner", "rank", "share"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    for place in range(6):
        assert str(first.index.read(place)) == str(second.index.read(place))
    cached.write_bytes(cached.read_bytes()[:100])
    assert Catalog(labels).names == first.names
    assert str(cached) in caplog.text
