import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smf_jax.config import ConfigError
from smf_jax.slots import sparse_table
from smf_jax.slots.sparse_table import NOTHING_READ, Rows, SlotCounts, background_of

readings = st.lists(st.lists(st.integers(0, 30), max_size=8), max_size=6)


def counts_of(reads):
    return SlotCounts.of([np.array(of, np.int32) for of in reads])


@given(readings)
def test_a_slot_counts_once_for_each_document_that_reads_it(reads):
    counts = counts_of(reads)

    got = counts.at(np.arange(31))

    assert got.tolist() == [sum(slot in of for of in reads) for slot in range(31)]
    assert counts.total == len(reads)


@given(readings, readings)
def test_counts_of_two_lists_add_up(first, second):
    got = counts_of(first).plus(counts_of(second))

    want = counts_of(first + second)
    np.testing.assert_array_equal(got.slots, want.slots)
    np.testing.assert_array_equal(got.counts, want.counts)
    assert got.total == want.total


def test_unused_rows_count_as_if_all_documents_and_facts_read_them():
    documents, facts = counts_of([[3], [3, 8], []]), counts_of([[8], [8]])

    background = background_of(np.array([3, 8, 64, 64, 64]), documents, facts)

    assert background.document_frequency.tolist() == [[2, 1, 3, 3, 3]]
    assert background.fact_frequency.tolist() == [[0, 2, 2, 2, 2]]
    assert (background.num_documents, background.num_facts) == (3, 2)


def test_counts_are_read_as_they_were_written(tmp_path):
    counts = counts_of([[3, 9], [9]])

    sparse_table.save(tmp_path / "file", "usage", counts, model_hash="abc")
    got, about = sparse_table.load(tmp_path / "file", "usage")

    np.testing.assert_array_equal(got.slots, counts.slots)
    np.testing.assert_array_equal(got.counts, counts.counts)
    assert (got.total, about["model_hash"]) == (2, "abc")


def test_slots_that_do_not_rise_are_damage(tmp_path):
    broken = NOTHING_READ._replace(
        slots=np.array([4, 4], np.int32), counts=np.array([1, 1], np.int32)
    )
    sparse_table.save(tmp_path / "file", "usage", broken)

    with pytest.raises(ConfigError, match="is damaged: slots and counts do not match"):
        sparse_table.load(tmp_path / "file", "usage")


def test_rows_and_reads_of_two_lessons_add_up():
    first = Rows(np.array([2, 9], np.int32), counts_of([[2, 9]]))

    both = first.plus(np.array([4, 9], np.int32), counts_of([[4], [9]]))

    assert both.slots.tolist() == [2, 4, 9]
    assert both.facts.at(np.array([2, 4, 9])).tolist() == [1, 1, 2]
    assert both.facts.total == 3


def test_the_usage_of_another_model_is_refused(tmp_path):
    sparse_table.save(tmp_path / "file", "usage", counts_of([[3]]), model_hash="abc")

    assert sparse_table.load_usage(tmp_path / "file", "abc").total == 1
    with pytest.raises(ConfigError, match="collected with model abc, not abd"):
        sparse_table.load_usage(tmp_path / "file", "abd")
