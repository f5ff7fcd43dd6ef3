import json

import pytest

from benchmarks.ablations.results import Results
from promerge_d2.utils.errors import UserError

RUN = {"settings": {"grid": (8, 8), "tau_f": 0.1}, "data": {"images": 3}}


@pytest.fixture
def folder(tmp_path):
    results = Results(tmp_path, "prompts", RUN)
    results.add({"stride": "2", "AP": "1.5000"})
    results.add({"stride": "4", "AP": ""})
    return tmp_path


def test_rows_are_kept_and_found_again(folder):
    assert (folder / "prompts.csv").read_text() == "stride,AP\n2,1.5000\n4,\n"
    assert json.loads((folder / "prompts.json").read_text())["settings"]["grid"] == [8, 8]
    again = Results(folder, "prompts", RUN)
    assert again.has({"stride": "2"})
    assert not again.has({"stride": "3"})


def test_another_configuration_is_refused_with_the_difference(folder):
    other = {"settings": {"grid": (8, 8), "tau_f": 0.2}, "data": {"images": 3}, "preset": "paper"}
    with pytest.raises(UserError) as caught:
        Results(folder, "prompts", other)
    message = str(caught.value)
    assert "settings.tau_f was 0.1, now 0.2; preset was not there, now paper. Name" in message
    assert "prompts.csv was computed with something else" in message
    assert "grid" not in message


def test_an_empty_place_takes_any_configuration(folder):
    (folder / "prompts.csv").unlink()  # the record alone binds nobody
    Results(folder, "prompts", {"data": {"images": 4}}).add({"stride": "2", "AP": "1"})
    assert json.loads((folder / "prompts.json").read_text()) == {"data": {"images": 4}}


def test_a_table_without_its_record_is_refused(folder):
    (folder / "prompts.json").unlink()
    with pytest.raises(UserError, match=r"prompts\.csv"):
        Results(folder, "prompts", RUN)


def test_a_damaged_table_is_refused(folder):
    (folder / "prompts.csv").write_text("stride,AP\n2\n")
    with pytest.raises(UserError, match="lengths"):
        Results(folder, "prompts", RUN)


def test_rows_of_other_columns_are_refused(folder):
    with pytest.raises(UserError, match=r"stride, AP.*tau_b, AP"):
        Results(folder, "prompts", RUN).add({"tau_b": "2", "AP": "1"})
