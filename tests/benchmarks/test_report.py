import math

import pytest

from benchmarks.measure import Figures
from benchmarks.report import Results, cross_table, digits, list_table, write_blocks
from promerge_d2.utils.errors import UserError

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"


def test_tables_hold_the_figures_that_were_measured():
    figures = Figures({"a.s": 2.0, "a.s.iqr": 1.0, "b.s": 0.125})
    lines = cross_table(figures, {"a": "A", "b": "B", "c": "C"}, {"s": "seconds"}, "way").split(
        "\n"
    )
    assert lines[0] == "| way | seconds |"
    assert lines[2:] == ["| A | 2 ± 0.5 |", "| B | 0.125 |", "| C | not measured |"]
    assert "| A | 2 |" in cross_table(figures, {"a": "A"}, {"s": "seconds"}, spread=False)
    assert list_table(figures, {"b.s": "seconds of B"}).split("\n")[2:] == [
        "| seconds of B | 0.125 |"
    ]


def test_results_begin_with_title_and_end_with_notes():
    text = Results("a title", Figures(), ["A table."], ["A note.", "Another."]).markdown()
    assert " cores of " in text.partition(". a title.\n\n")[0]
    assert text.endswith("a title.\n\nA table.\n\n* A note.\n* Another.")


def test_blocks_are_replaced_and_nothing_else(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(f"# Head\n\n{BEGIN}\nold\n{END}\n\nTail\n")
    for _ in range(2):
        assert write_blocks(file, {"benchmark": "new", "other": "left out"}) == ["benchmark"]
        assert file.read_text() == f"# Head\n\n{BEGIN}\n\nnew\n\n{END}\n\nTail\n"


def test_a_page_that_is_not_there_is_made_with_all_blocks(tmp_path):
    file = tmp_path / "new.md"
    assert write_blocks(file, {"benchmark": "new", "other": "more"}) == ["benchmark", "other"]
    text = file.read_text()
    assert text.startswith(f"{BEGIN}\n\nnew\n\n{END}\n")
    assert "<!-- other: begin -->\n\nmore\n" in text


@pytest.mark.parametrize(
    "text", ["# No place\n", f"{END}\n{BEGIN}\n", f"{BEGIN}{BEGIN}{END}", f"{END}\n"]
)
def test_a_page_without_a_place_is_left_alone(tmp_path, text):
    file = tmp_path / "page.md"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"page\.md .*{BEGIN}"):
        write_blocks(file, {"benchmark": "new"})
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("value", "text"), [(123.4, "123"), (12.34, "12.3"), (0.01234, "0.0123"), (2.0, "2"), (0, "0")]
)
def test_digits(value, text):
    assert digits(value, 3) == text
    assert math.isclose(float(digits(value, 3)), value, rel_tol=5e-3)
