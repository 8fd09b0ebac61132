import numpy as np
import pytest

from smf_jax.config import ConfigError
from smf_jax.slots import patch
from tests.tiny import bits

SLOTS, WIDTH = 9, 4


def table(seed=0, dtype=np.float32):
    values = np.random.default_rng(seed).normal(size=(SLOTS, WIDTH)).astype(dtype)
    values[0, 0] = -0.0
    return values


@pytest.fixture
def made():
    """Returns two tables, the same taught, and the patch between."""
    before = [table(0), table(1)]
    after = [values.copy() for values in before]
    after[0][[2, 7]] += 1
    after[0][0, 0] = 0.0  # a bit, and no number, changes
    return before, after, patch.diff(before, after, "the base")


def same(tables, others) -> bool:
    return all((bits(a) == bits(b)).all() for a, b in zip(tables, others, strict=True))


def test_a_patch_holds_the_rows_of_which_a_bit_differs(made):
    _, _, change = made

    assert [rows.slots.tolist() for rows in change.tables] == [[0, 2, 7], []]


def test_applied_it_gives_what_was_taught_and_reverted_the_base(made):
    before, after, change = made

    assert same(patch.apply(before, change), after)
    assert same(patch.revert(after, change), before)


def test_neither_changes_the_tables_it_is_given(made):
    before, after, change = made
    kept = [values.copy() for values in (*before, *after)]

    patch.apply(before, change)
    patch.revert(after, change)

    assert same([*before, *after], kept)


def test_it_is_not_applied_twice_nor_reverted_where_it_was_not_applied(made):
    before, after, change = made

    with pytest.raises(ConfigError, match=r"not as the patch expects it .*\[0, 2, 7\]"):
        patch.apply(after, change)
    with pytest.raises(ConfigError, match="not as the patch expects it"):
        patch.revert(before, change)


@pytest.mark.parametrize(
    "other", [table()[:5], table()[:, :3], table(dtype=np.float16)], ids=str
)
def test_it_fits_no_table_of_another_shape_or_type(made, other):
    _, _, change = made

    with pytest.raises(ConfigError, match="the patch has rows of float32"):
        patch.apply([other, other], change)


def test_read_from_its_file_it_is_the_same(made, tmp_path):
    _, _, change = made

    patch.save(tmp_path / "patch.safetensors", change)
    got = patch.load(tmp_path / "patch.safetensors")

    assert got.base_hash == "the base"
    for rows, others in zip(change.tables, got.tables, strict=True):
        assert same(rows, others)
    assert [path.name for path in tmp_path.iterdir()] == ["patch.safetensors"]


def refusal(path) -> str:
    with pytest.raises(ConfigError) as caught:
        patch.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_byte_flipped_or_cut_away_anywhere_is_found(made, tmp_path):
    path = tmp_path / "patch.safetensors"
    patch.save(path, made[2])
    content = path.read_bytes()

    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 + place % 255
        path.write_bytes(flipped)
        refusal(path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refusal(path)


@pytest.mark.parametrize("slots", [[7, 2, 0], [0, 2, 2], [-1, 2, 7], [0, 2]])
def test_slots_that_are_not_in_order_or_not_as_many_as_rows_are_refused(
    made, tmp_path, slots
):
    rows = made[2].tables[0]._replace(slots=np.array(slots, np.int32))
    path = tmp_path / "patch.safetensors"
    patch.save(path, patch.Patch((rows,), "the base"))

    assert "slots and rows do not belong together" in refusal(path)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_before_any_table_is_touched(
    made, tmp_path, number
):
    rows = made[2].tables[0]
    rows.after[1, 2] = number
    path = tmp_path / "patch.safetensors"
    patch.save(path, patch.Patch((rows,), "the base"))

    assert "not finite" in refusal(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "patch.safetensors")
