import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smf_jax import checkpoint
from smf_jax.checkpoint import manifest
from smf_jax.config import SaveConfig

ARRAYS = {"params": {"values": jnp.arange(12.0).reshape(4, 3)}}


def save_steps(run_dir, config, losses):
    """Saves step 1, 2, ... with these losses."""
    with checkpoint.saver(run_dir, config) as saver:
        for step, loss in enumerate(losses, 1):
            saver.save(step, ARRAYS, {}, {"loss": loss})


@pytest.mark.parametrize(
    ("config", "want"),
    [
        (SaveConfig(keep=1), [6]),
        (SaveConfig(keep=2), [5, 6]),
        (SaveConfig(keep=9), [1, 2, 3, 4, 5, 6]),
        (SaveConfig(keep=1, keep_every=2), [2, 4, 6]),
        (SaveConfig(keep=1, best="loss"), [3, 6]),
        (SaveConfig(keep=1, best="known"), [6]),  # no step has that metric
        (SaveConfig(keep=1, keep_every=4, best="loss"), [3, 4, 6]),
    ],
)
def test_what_is_kept_is_what_the_configuration_says(tmp_path, config, want):
    save_steps(tmp_path, config, [5.0, 4.0, 1.0, 3.0, 1.5, 2.0])

    assert checkpoint.steps(tmp_path) == want
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == sorted(
        map(str, want)
    )


def test_of_two_equally_good_the_later_is_kept(tmp_path):
    save_steps(tmp_path, SaveConfig(keep=1, best="loss"), [1.0, 1.0, 2.0])

    assert checkpoint.steps(tmp_path) == [2, 3]


def test_the_best_exact_match_is_the_highest(tmp_path):
    with checkpoint.saver(tmp_path, SaveConfig(keep=1, best="known")) as saver:
        for step, known in enumerate([0.5, 0.9, 0.7], 1):
            saver.save(step, ARRAYS, {}, {"known": known})

    assert checkpoint.steps(tmp_path) == [2, 3]


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    arrays = {"params": {"values": jnp.arange(12.0).reshape(4, 3)}}
    want = np.array(arrays["params"]["values"])
    clear = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)

    with checkpoint.saver(tmp_path, SaveConfig()) as saver:
        saver.save(1, arrays, {}, {})
        clear(arrays)

    (loaded, _) = checkpoint.load(tmp_path, 1, jax.eval_shape(lambda: ARRAYS))
    np.testing.assert_array_equal(loaded["params"]["values"], want)


def fail_to_commit(monkeypatch, error):
    def write(folder, record):
        raise error

    monkeypatch.setattr(manifest, "write", write)


def test_a_save_that_fails_is_told_and_leaves_the_one_before(tmp_path, monkeypatch):
    save_steps(tmp_path, SaveConfig(), [1.0])
    fail_to_commit(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))

    with (
        pytest.raises(checkpoint.SaveError, match=r"No space left.*step 1 stands"),
        checkpoint.saver(tmp_path, SaveConfig()) as saver,
    ):
        saver.save(2, ARRAYS, {}, {})

    assert checkpoint.problems(tmp_path, 1) == []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_an_error_of_a_save_under_way_surfaces_at_the_next_check(tmp_path, monkeypatch):
    fail_to_commit(monkeypatch, OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))

    def check_until_it_fails():
        with checkpoint.saver(tmp_path, SaveConfig()) as saver:
            saver.save(1, ARRAYS, {}, {})
            while True:
                saver.check()

    with pytest.raises(checkpoint.SaveError, match=r"quota.*none before it"):
        check_until_it_fails()


def test_a_body_that_fails_does_not_cut_a_save_short(tmp_path):
    def save_and_fail():
        with checkpoint.saver(tmp_path, SaveConfig()) as saver:
            saver.save(1, ARRAYS, {}, {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        save_and_fail()

    assert checkpoint.problems(tmp_path, 1) == []
