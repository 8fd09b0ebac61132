import jax.numpy as jnp
import numpy as np
import pytest

from smf_jax.config import ConfigError
from smf_jax.slots import document_frequency, tensor_file
from smf_jax.slots.document_frequency import (
    Background,
    collect,
    load,
    save,
    selectable_slots,
)
from smf_jax.slots.select import count_reads

TABLES, NUM_SLOTS = 2, 9
FREQUENCY = np.arange(TABLES * NUM_SLOTS, dtype=np.int32).reshape(TABLES, NUM_SLOTS)
BACKGROUND = Background(FREQUENCY, 17)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "usage.safetensors"
    save(path, BACKGROUND, model_hash="model 1")
    return path


def test_a_background_comes_back_as_it_was_saved(path):
    got = load(path, "model 1", TABLES, NUM_SLOTS)

    np.testing.assert_array_equal(got.document_frequency, FREQUENCY)
    assert got.document_frequency.dtype == np.int32
    assert got.num_documents == 17


def test_a_document_counts_a_slot_once_however_often_it_reads_it():
    reads = jnp.array([[[3, 3], [3, 0]], [[1, 0], [5, 5]]])  # [document, token, read]
    is_token = jnp.array([[True, True], [True, False]])
    documents = [
        (count_reads(slots, real, 6) > 0)[None]
        for slots, real in zip(reads, is_token, strict=True)
    ]

    got = collect(documents)

    assert got.document_frequency.tolist() == [[2, 1, 0, 1, 0, 0]]
    assert got.num_documents == 2


def test_slots_that_every_document_reads_are_not_selectable():
    frequency = np.array([[3, 0, 3, 2], [3, 3, 3, 3]], np.int32)

    assert selectable_slots(Background(frequency, 3)) == [2, 0]


def test_a_corpus_without_a_document_is_refused():
    with pytest.raises(ConfigError, match="no background document"):
        collect([])


def test_the_usage_of_another_model_is_refused_with_both_hashes(path):
    with pytest.raises(ConfigError, match=r"model 1.*model 2.*again"):
        load(path, "model 2", TABLES, NUM_SLOTS)


@pytest.mark.parametrize(("tables", "slots"), [(1, 9), (2, 16), (9, 2)])
def test_the_usage_of_another_table_is_refused_with_both_shapes(path, tables, slots):
    with pytest.raises(ConfigError, match=rf"\(2, 9\).*\({tables}, {slots}\)"):
        load(path, "model 1", tables, slots)


def test_a_missing_file_is_refused_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(ConfigError, match=r"does not exist.*smf usage"):
        load(tmp_path / "usage.safetensors", "model 1", TABLES, NUM_SLOTS)


def test_a_file_of_another_type_or_without_its_counts_is_refused(tmp_path):
    path, metadata = tmp_path / "usage.safetensors", {"num_documents": 3}
    counts = {"document_frequency": np.zeros((1, 6), np.int32)}
    whole = metadata | {"model_hash": "model"}
    for arrays, about in (
        ({"other": np.zeros(1, np.int32)}, whole),
        ({"document_frequency": np.zeros((1, 6), np.int64)}, whole),
        (counts, metadata),
    ):
        tensor_file.save(path, "usage", arrays, about)
        with pytest.raises(ConfigError, match="is not a usage file"):
            document_frequency.load(path, "model", 1, 6)
