from promerge_d2.utils.differences import differences


def test_differences_by_hand():
    before = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": 3}
    now = {"a": {"b": 2, "c": [1, 2]}, "e": {"f": 4}, "g": {"h": 5}}
    assert list(differences(before, now)) == [
        ("a.b", 1, 2),
        ("e", 3, {"f": 4}),
        ("g.h", None, 5),
    ]


def test_equal_records_do_not_differ():
    assert list(differences({"a": {"b": 1}}, {"a": {"b": 1}, "c": None})) == []
