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
SCORES = [5.0, 4.0, 1.0, 3.0, 1.0, 2.0]


def save_steps(run_dir, config, scores):
    """Saves step 1, 2, ... with these scores."""
    with checkpoint.saver(run_dir, config) as saver:
        for step, score in enumerate(scores, 1):
            saver.save(step, ARRAYS, {}, {"loss": score, "known": score})


@pytest.mark.parametrize(
    ("config", "want"),
    [
        (SaveConfig(keep=2), [5, 6]),
        (SaveConfig(keep=9), [1, 2, 3, 4, 5, 6]),
        (SaveConfig(keep=1, keep_every=2), [2, 4, 6]),
        (SaveConfig(keep=1, best="loss"), [5, 6]),  # lowest; of equal ones the later
        (SaveConfig(keep=1, best="known"), [1, 6]),  # highest
        (SaveConfig(keep=1, best="taught"), [6]),  # no step has that score
        (SaveConfig(keep=1, keep_every=4, best="loss"), [4, 5, 6]),
    ],
)
def test_the_configured_checkpoints_are_kept(tmp_path, config, want):
    save_steps(tmp_path, config, SCORES)

    assert checkpoint.steps(tmp_path) == want
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == sorted(map(str, want))


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    arrays = {"params": {"values": jnp.arange(12.0).reshape(4, 3)}}
    want = np.array(arrays["params"]["values"])
    clear = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)

    with checkpoint.saver(tmp_path, SaveConfig()) as saver:
        saver.save(1, arrays, {}, {})
        clear(arrays)

    (loaded, _) = checkpoint.load(tmp_path, 1, jax.eval_shape(lambda: ARRAYS))
    np.testing.assert_array_equal(loaded["params"]["values"], want)


def test_the_log_is_recorded_as_it_was_when_save_was_called(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text("one\n")
    with checkpoint.saver(tmp_path, SaveConfig()) as saver:
        saver.save(1, ARRAYS, {}, {})
        log.write_text("one\ntwo\n")

    record = checkpoint.read(tmp_path, 1)
    assert checkpoint.output_problems(tmp_path, record) == []
    for content in ("on3\ntwo\n", "one", None):
        log.unlink() if content is None else log.write_text(content)
        (problem,) = checkpoint.output_problems(tmp_path, record)
        assert problem == f"{log} is damaged: checksum mismatch"


def fail_to_commit(monkeypatch, error):
    def write(folder, record):
        raise error

    monkeypatch.setattr(manifest, "write", write)


def test_a_failed_save_raises_and_leaves_the_one_before(tmp_path, monkeypatch):
    save_steps(tmp_path, SaveConfig(), [1.0])
    fail_to_commit(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))

    with (
        pytest.raises(checkpoint.SaveError, match=r"No space left.*step 1 is intact"),
        checkpoint.saver(tmp_path, SaveConfig()) as saver,
    ):
        saver.save(2, ARRAYS, {}, {})

    assert checkpoint.problems(tmp_path, 1) == []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_an_error_of_a_running_save_is_raised_by_the_next_check(tmp_path, monkeypatch):
    fail_to_commit(monkeypatch, OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))

    def check_until_it_fails():
        with checkpoint.saver(tmp_path, SaveConfig()) as saver:
            saver.save(1, ARRAYS, {}, {})
            while True:
                saver.check()

    with pytest.raises(checkpoint.SaveError, match=r"quota.*no earlier one"):
        check_until_it_fails()


def test_an_error_in_the_body_does_not_interrupt_a_save(tmp_path):
    def save_and_fail():
        with checkpoint.saver(tmp_path, SaveConfig()) as saver:
            saver.save(1, ARRAYS, {}, {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        save_and_fail()

    assert checkpoint.problems(tmp_path, 1) == []
