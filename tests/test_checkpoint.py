import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smf_jax import checkpoint
from smf_jax.config import ConfigError


def params():
    """Returns parameters of two types, with values whose bits are easily lost."""
    return {
        "keys": jnp.array([[-0.0, 0.0, 1e-42]], jnp.float32),
        "layers": [
            {"scale": jnp.array([1.5, -2.0], jnp.bfloat16)},
            {"scale": jnp.array([3.0, float("inf")], jnp.bfloat16)},
        ],
    }


def abstract(tree):
    return jax.eval_shape(lambda: tree)


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture
def run_dir(tmp_path):
    checkpoint.save(tmp_path, 3, params())
    return tmp_path


def refusal(run_dir, expected) -> str:
    """Returns the one line that refuses to load."""
    with pytest.raises(ConfigError) as caught:
        checkpoint.load(run_dir, expected)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_bit_comes_back(run_dir):
    got = checkpoint.load(run_dir, abstract(params()))

    assert bits(got) == bits(params())
    assert jax.tree.structure(got) == jax.tree.structure(params())
    assert abstract(got) == abstract(params())


def test_the_latest_step_is_loaded(run_dir):
    later = jax.tree.map(lambda leaf: leaf + 1, params())
    checkpoint.save(run_dir, 12, later)

    assert checkpoint.latest_step(run_dir) == 12
    assert bits(checkpoint.load(run_dir, abstract(later))) == bits(later)


def test_where_nothing_was_saved_there_is_no_step(tmp_path):
    assert checkpoint.latest_step(tmp_path) is None


def test_loading_where_nothing_was_saved_is_refused(tmp_path):
    assert "no finished checkpoint" in refusal(tmp_path, abstract(params()))


def test_an_unfinished_step_is_no_step(run_dir):
    # What orbax leaves when it is killed: a folder beside, under a name of its own.
    folder = run_dir / "checkpoints"
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")

    assert checkpoint.latest_step(run_dir) == 3


def test_another_shape_type_missing_and_extra_are_all_named_in_one_line(run_dir):
    other = {
        "keys": jnp.zeros((1, 4), jnp.float32),  # was 1 x 3
        "layers": [{"scale": jnp.zeros(2, jnp.float32)}],  # was bfloat16; one is extra
        "values": jnp.zeros((5, 2)),  # is missing
    }

    message = refusal(run_dir, abstract(other))

    assert "keys is float32[1, 3], not float32[1, 4]" in message
    assert "layers/0/scale is bfloat16[2], not float32[2]" in message
    assert "layers/1/scale is bfloat16[2], not expected" in message
    assert "values is missing, not float32[5, 2]" in message


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_checkpoint_that_lost_any_file_is_refused(run_dir):
    for path in files(run_dir / "checkpoints"):
        content = path.read_bytes()
        path.unlink()
        refusal(run_dir, abstract(params()))
        path.write_bytes(content)


def cut(content: bytes) -> bytes:
    return content[:-1]


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, flip_a_bit])
def test_a_file_that_is_not_as_it_was_written_is_refused_by_name(run_dir, damage):
    for path in files(run_dir / "checkpoints" / "3"):
        content = path.read_bytes()
        if content:
            path.write_bytes(damage(content))
            assert path.name in refusal(run_dir, abstract(params()))
            path.write_bytes(content)


def test_the_hash_is_of_values_and_not_of_when_they_were_made():
    assert checkpoint.params_hash(params()) == checkpoint.params_hash(params())


def test_one_bit_changes_the_hash():
    other = params()
    other["keys"] = other["keys"].at[0, 0].set(0.0)  # was -0.0

    assert (other["keys"] == params()["keys"]).all()
    assert checkpoint.params_hash(other) != checkpoint.params_hash(params())


def test_a_name_changes_the_hash():
    other = params()
    other["kees"] = other.pop("keys")

    assert checkpoint.params_hash(other) != checkpoint.params_hash(params())


def test_a_type_and_a_shape_change_the_hash():
    zeros = [
        jnp.zeros(shape, kind)
        for shape, kind in [((4,), "int32"), ((4,), "float32"), ((2, 2), "int32")]
    ]

    assert len({checkpoint.params_hash({"a": leaf}) for leaf in zeros}) == 3
