import numpy as np
import pytest

from smf_jax.slots.usage_stats import usage_stats


def counts(*values, of=1000):
    """Returns the reads of many slots, the first as given and the rest 0."""
    out = np.zeros(of, np.int64)
    out[: len(values)] = values
    return out


def test_even_reads_are_uniform():
    got = usage_stats(np.full(1000, 7))

    assert got.read == 1
    assert got.kl_to_uniform == pytest.approx(0, abs=1e-12)
    assert got.top_percent == pytest.approx(0.01)
    assert (got.dead, got.hubs) == (0, 0)


def test_a_single_slot_that_takes_all_reads_is_a_hub():
    got = usage_stats(counts(5))

    assert got.read == 0.001
    assert got.kl_to_uniform == pytest.approx(np.log(1000))
    assert got.top_percent == 1
    assert (got.dead, got.hubs) == (999, 1)


def test_half_of_the_slots_read_evenly_is_one_bit_from_uniform():
    got = usage_stats(counts(*[3] * 500))

    assert got.kl_to_uniform == pytest.approx(np.log(2))
    assert got.dead == 500


def test_a_hub_takes_a_hundred_even_shares():
    # 1,000 slots and 1,000 reads: an even share is 1.
    assert usage_stats(counts(99, 901)).hubs == 1
    assert usage_stats(counts(100, 900)).hubs == 2


def test_the_top_percent_is_of_slots_not_of_reads():
    # 10 of 1,000 slots.
    assert usage_stats(counts(*[50] * 10, *[1] * 500)).top_percent == 0.5


def test_a_table_that_nothing_reads_has_no_statistics():
    with pytest.raises(ValueError, match="no slot was read"):
        usage_stats(counts())
