import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from smf_jax.config import ConfigError
from smf_jax.slots.document_frequency import Background, collect, load, not_in_all, save
from smf_jax.slots.select import count_reads

POOLS, NUM_SLOTS = 2, 9
FREQUENCY = np.arange(POOLS * NUM_SLOTS, dtype=np.int32).reshape(POOLS, NUM_SLOTS)
USAGE = Background(FREQUENCY, 17, (32, 64), "model 1", "corpus 1")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "usage.safetensors"


def load_again(path):
    return load(path, USAGE.model_hash, POOLS, NUM_SLOTS)


def test_usage_comes_back_as_it_was_saved(path):
    save(path, USAGE)

    got = load_again(path)

    np.testing.assert_array_equal(got.document_frequency, FREQUENCY)
    assert got.document_frequency.dtype == np.int32
    assert got[1:] == USAGE[1:]


def test_a_document_counts_a_slot_once_however_often_it_reads_it():
    reads = jnp.array([[[3, 3], [3, 0]], [[1, 0], [5, 5]]])  # [document, token, read]
    is_token = jnp.array([[True, True], [True, False]])
    documents = [
        (count_reads(slots, real, 6) > 0)[None]
        for slots, real in zip(reads, is_token, strict=True)
    ]

    got = collect(documents, (1, 2), "model 1", "corpus 1")

    assert got.document_frequency.tolist() == [[2, 1, 0, 1, 0, 0]]
    assert got.num_documents == 2


def test_slots_that_every_document_reads_are_told_from_the_others():
    frequency = np.array([[3, 0, 3, 2], [3, 3, 3, 3]], np.int32)

    assert not_in_all(Background(frequency, 3, (1, 2), "m", "c")) == [2, 0]


def test_a_corpus_without_a_document_is_refused():
    with pytest.raises(ConfigError, match="no background document"):
        collect([], (1, 2), "model 1", "corpus 1")


def test_the_usage_of_another_model_is_refused_with_both_hashes(path):
    save(path, USAGE)

    with pytest.raises(ConfigError, match=r"model 1.*model 2.*again"):
        load(path, "model 2", POOLS, NUM_SLOTS)


@pytest.mark.parametrize(("pools", "num_slots"), [(1, 9), (2, 16), (9, 2)])
def test_the_usage_of_another_table_is_refused_with_both_shapes(path, pools, num_slots):
    save(path, USAGE)

    with pytest.raises(ConfigError, match=rf"\(2, 9\).*\({pools}, {num_slots}\)"):
        load(path, USAGE.model_hash, pools, num_slots)


def test_a_missing_file_is_refused_with_the_command_that_makes_it(path):
    with pytest.raises(ConfigError, match=r"does not exist.*smf usage"):
        load_again(path)


def test_a_file_cut_short_anywhere_is_refused_by_name(path):
    save(path, USAGE)
    whole = path.read_bytes()

    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"usage\.safetensors is no usage file"):
            load_again(path)


@pytest.mark.parametrize("content", [b"\x00" * 100, b"\xff" * 100, b"{}", b"[1, 2]"])
def test_garbage_is_refused_by_name(path, content):
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"usage\.safetensors is no usage file"):
        load_again(path)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"something": FREQUENCY}, {"usage": "{}"}),
        ({"document_frequency": FREQUENCY}, None),
        ({"document_frequency": FREQUENCY}, {"other": "{}"}),
        ({"document_frequency": FREQUENCY}, {"usage": "not JSON"}),
        ({"document_frequency": FREQUENCY}, {"usage": "[]"}),
        ({"document_frequency": FREQUENCY}, {"usage": json.dumps({"model_hash": ""})}),
    ],
    ids=str,
)
def test_a_safetensors_file_of_something_else_is_refused(path, tensors, metadata):
    save_file(tensors, path, metadata)

    with pytest.raises(ConfigError, match=r"usage\.safetensors is no usage file"):
        load_again(path)


def test_a_save_that_fails_leaves_nothing_under_the_final_name(path):
    path.with_name(path.name + ".partial").mkdir()  # where the file would be written

    with pytest.raises((OSError, SafetensorError)):
        save(path, USAGE)

    assert not path.exists()


def test_a_save_that_fails_leaves_the_file_before_it_whole(path):
    save(path, USAGE)
    path.with_name(path.name + ".partial").mkdir()

    with pytest.raises((OSError, SafetensorError)):
        save(path, USAGE._replace(num_documents=18))

    assert load_again(path).num_documents == 17


def test_a_save_leaves_nothing_beside_the_file(path):
    save(path, USAGE)

    assert list(path.parent.iterdir()) == [path]
