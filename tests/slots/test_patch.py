import numpy as np
import pytest

from smf_jax.config import ComputeConfig, ConfigError, MeshConfig
from smf_jax.sharding import make_layout
from smf_jax.slots import patch
from smf_jax.slots.sparse_table import SlotCounts
from tests.tiny import bits

SLOTS, WIDTH = 9, 4


def table(seed=0, dtype=np.float32):
    values = np.random.default_rng(seed).normal(size=(SLOTS, WIDTH)).astype(dtype)
    values[0, 0] = -0.0
    return values


@pytest.fixture
def change():
    """Returns two tables before and after finetuning, and the patch between."""
    before = [table(0), table(1)]
    after = [values.copy() for values in before]
    after[0][[2, 7]] += 1
    after[0][0, 0] = 0.0  # a bit, and no number, changes
    return before, after, patch.diff(before, after, "the base")


def same(tables, others) -> bool:
    return all((bits(a) == bits(b)).all() for a, b in zip(tables, others, strict=True))


def test_a_patch_holds_the_rows_of_which_a_bit_differs(change):
    *_, got = change

    assert [rows.slots.tolist() for rows in got.tables] == [[0, 2, 7], []]


def test_a_patch_of_more_rows_than_are_transferred_at_once_is_the_same(
    change, monkeypatch
):
    before, after, want = change
    monkeypatch.setattr(patch, "ROWS_PER_TRANSFER", 2)

    got = patch.diff(before, after, "the base")

    assert all(map(same, got.tables, want.tables))


@pytest.mark.parametrize("split", ["columns", "slots"])
def test_a_snapshot_restores_the_shards_of_a_table(split):
    mesh = MeshConfig(data=2, model=2, values=split)
    layout = make_layout(mesh, ComputeConfig(), None)
    values = table()[:8]
    sharded = layout.device_put(values, layout.sharding(layout.table_spec))

    restore = patch.snapshot(sharded)
    sharded.delete()
    got = restore()

    assert got.sharding == layout.sharding(layout.table_spec)
    assert same([got], [values])


def test_applied_it_gives_the_finetuned_tables_and_reverted_the_base(change):
    before, after, got = change
    inputs = [values.copy() for values in (*before, *after)]

    assert same(patch.apply(before, got), after)
    assert same(patch.revert(after, got), before)
    assert same([*before, *after], inputs)


def test_it_is_not_applied_twice_nor_reverted_where_it_was_not_applied(change):
    before, after, got = change

    with pytest.raises(ConfigError, match=r"not as the patch expects it .*\[0, 2, 7\]"):
        patch.apply(after, got)
    with pytest.raises(ConfigError, match="not as the patch expects it"):
        patch.revert(before, got)


@pytest.mark.parametrize(
    "other", [table()[:5], table()[:, :3], table(dtype=np.float16)], ids=str
)
def test_it_fits_no_table_of_another_shape_or_type(change, other):
    with pytest.raises(ConfigError, match="the patch has rows of float32"):
        patch.apply([other, other], change[2])


def test_it_fits_no_other_number_of_tables(change):
    with pytest.raises(ConfigError, match="for 2 tables, not for 1"):
        patch.apply([table()], change[2])


def test_read_from_its_file_it_is_the_same(change, tmp_path):
    patch.save(tmp_path / "patch.safetensors", change[2])

    got = patch.load(tmp_path / "patch.safetensors")

    assert got.base_hash == "the base"
    assert all(map(same, got.tables, change[2].tables))


def test_what_a_patch_says_of_its_making_is_read_from_its_file(change, tmp_path):
    origin = patch.Origin(2, "calibrated", 99, [1], {"steps": 3}, "corpus", None)
    reads = SlotCounts.of([np.array([3, 5]), np.array([5])])
    added = np.array([5], np.int32)
    want = change[2]._replace(origin=origin, reads=reads, added=added)
    patch.save(tmp_path / "patch", want)

    got = patch.load(tmp_path / "patch")

    assert got.origin == origin
    assert (got.reads.slots.tolist(), got.reads.counts.tolist()) == ([3, 5], [1, 2])
    assert got.reads.total == 2
    assert got.added.tolist() == [5]


def test_a_patch_by_slots_is_by_rows_where_the_rows_are(change):
    slots = [np.arange(10, 10 + SLOTS, dtype=np.int32)] * 2

    by_slots = patch.at_slots(change[2], slots)
    by_rows = patch.at_rows(by_slots, slots)

    assert by_slots.tables[0].slots.tolist() == [10, 12, 17]
    assert by_rows.tables[0].slots.tolist() == [0, 2, 7]


def test_a_slot_without_a_row_is_refused(change):
    with pytest.raises(ConfigError, match=r"no row for slots \[0, 7\]"):
        patch.at_rows(change[2], [np.array([1, 2, 9])] * 2)


@pytest.mark.parametrize("slots", [[7, 2, 0], [0, 2, 2], [-1, 2, 7], [0, 2]])
def test_slots_that_are_not_rising_or_not_as_many_as_rows_are_refused(
    change, tmp_path, slots
):
    rows = change[2].tables[0]._replace(slots=np.array(slots, np.int32))
    patch.save(tmp_path / "patch", patch.Patch((rows,), "the base"))

    with pytest.raises(ConfigError, match="slots and rows do not match"):
        patch.load(tmp_path / "patch")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_patch_of_rows_that_are_not_finite_is_refused(change, tmp_path, number):
    rows = change[2].tables[0]
    rows.after[1, 2] = number
    patch.save(tmp_path / "patch", patch.Patch((rows,), "the base"))

    with pytest.raises(ConfigError, match="not finite"):
        patch.load(tmp_path / "patch")
