import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smf_jax import checkpoint
from smf_jax.config import ConfigError, SaveConfig


def arrays():
    """Returns arrays of two types, with values whose bits are easily lost."""
    return {
        "params": {
            "keys": jnp.array([[-0.0, 0.0, 1e-42]], jnp.float32),
            "layers": [
                {"scale": jnp.array([1.5, -2.0], jnp.bfloat16)},
                {"scale": jnp.array([3.0, float("inf")], jnp.bfloat16)},
            ],
        },
        "optimizer": {"count": jnp.array(7, jnp.int32), "mean": jnp.ones((2, 3))},
    }


def abstract(tree):
    return jax.eval_shape(lambda: tree)


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("saved") / "run"
    run_dir.mkdir()
    (run_dir / "config.json").write_text('{"a": 1}\n')
    (run_dir / "tokenizer.json").write_text('{"b": 2}\n')
    with checkpoint.saver(run_dir, SaveConfig()) as saver:
        saver.save(3, arrays(), {"data": {"next_index": 9}}, {"loss": 1.0})
    return run_dir


@pytest.fixture
def run_dir(saved, tmp_path):
    """Returns a copy of a run, somewhere else, that a test may damage."""
    return shutil.copytree(saved, tmp_path / "run")


def load(run_dir, expected=None):
    return checkpoint.load(run_dir, 3, abstract(expected or arrays()))


def refusal(run_dir, expected=None) -> str:
    """Returns the one line that refuses to load."""
    with pytest.raises(ConfigError) as caught:
        load(run_dir, expected)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_bit_is_loaded_as_it_was_saved(run_dir):
    got, manifest = load(run_dir)

    assert bits(got) == bits(arrays())
    assert jax.tree.structure(got) == jax.tree.structure(arrays())
    assert abstract(got) == abstract(arrays())
    assert manifest.progress == {"data": {"next_index": 9}}


def test_a_part_is_loaded_without_the_rest(run_dir):
    got, _ = load(run_dir, expected={"params": arrays()["params"]})

    assert bits(got) == bits(arrays()["params"])


def test_steps_are_in_order_and_other_names_are_no_steps(run_dir, tmp_path):
    folder = run_dir / "checkpoints"
    for name in ("12", "13.saving", "14.deleting", "15.damaged"):
        shutil.copytree(folder / "3", folder / name)

    assert checkpoint.steps(run_dir) == [3, 12]
    assert checkpoint.latest_step(run_dir) == 12
    assert checkpoint.latest_step(tmp_path) is None


def test_debris_is_removed_and_checkpoints_are_not(run_dir):
    folder = run_dir / "checkpoints"
    for name in ("4.saving", "2.deleting", "1.damaged"):
        shutil.copytree(folder / "3", folder / name)

    checkpoint.discard_debris(run_dir)

    assert sorted(path.name for path in folder.iterdir()) == ["1.damaged", "3"]


def test_a_checkpoint_set_aside_twice_is_never_lost(run_dir):
    folder = run_dir / "checkpoints"
    shutil.copytree(folder / "3", folder / "3.damaged")

    assert checkpoint.set_aside(run_dir, 3).name == "3.damaged-2"
    assert (folder / "3.damaged").exists()


def test_shapes_types_missing_and_extra_arrays_are_all_named_in_one_line(run_dir):
    other = arrays()
    other["params"] = {
        "keys": jnp.zeros((1, 4), jnp.float32),  # was 1 x 3
        "layers": [{"scale": jnp.zeros(2, jnp.float32)}],  # was bfloat16; one is extra
        "values": jnp.zeros((5, 2)),  # is missing
    }

    message = refusal(run_dir, other)

    assert "params/keys is float32[1, 3], not float32[1, 4]" in message
    assert "params/layers/0/scale is bfloat16[2], not float32[2]" in message
    assert "params/layers/1/scale is bfloat16[2], not expected" in message
    assert "params/values is missing, not float32[5, 2]" in message


# --- damage ---


def files(run_dir):
    """Returns every file that a checkpoint needs."""
    step = run_dir / "checkpoints" / "3"
    below = sorted(path for path in step.rglob("*") if path.is_file())
    return [*below, run_dir / "config.json", run_dir / "tokenizer.json"]


def test_a_missing_or_truncated_file_is_named(run_dir):
    for path in files(run_dir):
        content = path.read_bytes()
        path.unlink()
        assert path.name in refusal(run_dir)
        for length in {0, len(content) // 2, len(content) - 1} - {-1, len(content)}:
            path.write_bytes(content[:length])
            assert path.name in refusal(run_dir)
        path.write_bytes(content)


def test_an_added_file_is_named(run_dir):
    (run_dir / "checkpoints" / "3" / "arrays" / "more").write_text("")

    assert "more is not part of the checkpoint" in refusal(run_dir)


def test_a_flipped_byte_in_50_positions_is_always_found(run_dir):
    rng = random.Random(0)
    flipped = [path for path in files(run_dir) if path.stat().st_size]
    # Every file at least once, the rest by their sizes.
    sizes = [path.stat().st_size for path in flipped]
    flipped += rng.choices(flipped, sizes, k=50 - len(flipped))
    assert len(flipped) == 50

    for path in flipped:
        content = path.read_bytes()
        changed = bytearray(content)
        position = rng.randrange(len(content))
        changed[position] ^= rng.randrange(1, 256)
        path.write_bytes(changed)
        assert path.name in refusal(run_dir), f"byte {position} of {path}"
        path.write_bytes(content)


def test_arrays_that_differ_from_the_manifest_are_refused(run_dir):
    record = checkpoint.read(run_dir, 3)
    changed = record._replace(arrays=record.arrays | {"params/keys": "another"})
    checkpoint.manifest.write(run_dir / "checkpoints" / "3", changed)

    assert "checksum mismatch of params/keys" in refusal(run_dir)


def test_the_manifest_of_another_step_is_refused(run_dir):
    folder = run_dir / "checkpoints"
    shutil.copytree(folder / "3", folder / "4")

    (problem,) = checkpoint.problems(run_dir, 4)

    assert "manifest.json is damaged" in problem


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"manifest": {}}', "[" * 10**5])
def test_a_manifest_with_other_content_is_refused(run_dir, text):
    (run_dir / "checkpoints" / "3" / "manifest.json").write_text(text)

    assert "manifest.json is damaged" in refusal(run_dir)


def test_the_manifest_is_plain_json(saved):
    path = saved / "checkpoints" / "3" / "manifest.json"

    content = json.loads(path.read_text())["manifest"]

    assert content["step"] == 3
    assert set(content["arrays"]) == {
        *("params/keys", "params/layers/0/scale", "params/layers/1/scale"),
        *("optimizer/count", "optimizer/mean"),
    }
    assert set(content["run_files"]) == {"config.json", "tokenizer.json"}
