"""Trainable arrays are on the devices once, in a new run and in a resumed one."""

import jax
import numpy as np
from flax import nnx
from rich.console import Console

from smf_jax import checkpoint
from smf_jax.config import OptimConfig, SaveConfig
from smf_jax.model.memory import MemoryValues
from smf_jax.optim.methods import make_method
from smf_jax.runs import OpenRun
from smf_jax.train.state import as_saved, init_or_restore, init_state
from tests.tiny import bits, make_model, model_config

SMF = OptimConfig(method="smf", optimizer="adamw", learning_rate=0.5, top_t=4)


def parts(model):
    _, tables, rest = nnx.split(model, MemoryValues, ...)
    return jax.tree.leaves(nnx.as_pure(tables)), jax.tree.leaves(nnx.as_pure(rest))


def addresses(arrays) -> list[int]:
    return [array.unsafe_buffer_pointer() for array in arrays]


def test_a_new_run_trains_the_arrays_of_the_model():
    model = make_model(model_config())
    tables, rest = parts(model)

    _, state, frozen = init_state(model, make_method(SMF, 3))

    assert addresses(jax.tree.leaves(state.trainable)) == addresses(tables)
    assert addresses(jax.tree.leaves(frozen)) == addresses(rest)


def test_a_resumed_run_frees_the_arrays_it_is_about_to_load(tmp_path):
    method = make_method(SMF, 3)
    _, saved, _ = init_state(make_model(model_config(), seed=1), method)
    with checkpoint.saver(tmp_path, SaveConfig()) as saver:
        saver.save(2, as_saved(saved), {}, {})
    model = make_model(model_config())
    tables, rest = parts(model)

    run = OpenRun(tmp_path, 2, {}, {}, Console())
    _, state, frozen = init_or_restore(run, model, method, max_skips=0)

    assert [table.is_deleted() for table in tables] == [True]
    assert addresses(jax.tree.leaves(frozen)) == addresses(rest)
    for got, want in zip(*map(jax.tree.leaves, (state, saved)), strict=True):
        np.testing.assert_array_equal(bits(got), bits(want))
