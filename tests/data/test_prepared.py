"""Which data sets of questions are prepared on this machine."""

import pytest

from smf_jax.data.corpus import load_kept
from smf_jax.data.sources import prepared_facts
from tests.data.sets import EXAMPLES, of_catalogue

NAME = "natural_questions_open"


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    return tmp_path / "sets"


def test_without_a_folder_of_data_sets_there_are_none():
    assert prepared_facts() == []


def test_prepared_questions_are_found_and_read(folder):
    of_catalogue(NAME, folder, [EXAMPLES[NAME]])
    of_catalogue("lm1b", folder, [EXAMPLES["lm1b"]])  # texts

    sources = prepared_facts()

    assert sources == [f"tfds:{NAME}:train[:1]"]
    (fact,) = load_kept(sources)
    assert fact.question == EXAMPLES[NAME]["question"]


def test_a_damaged_data_set_is_left_out(folder):
    path = of_catalogue(NAME, folder, [EXAMPLES[NAME]])
    (path / "dataset_info.json").write_text("{")

    assert prepared_facts() == []
