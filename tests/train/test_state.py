"""What trains is on the devices once, whether a run begins or goes on."""

import jax
from flax import nnx

from smf_jax.config import OptimConfig
from smf_jax.model.memory import MemoryValues
from smf_jax.optim.methods import make_method
from smf_jax.train.state import init_state, split_to_restore
from tests.tiny import make_model, model_config

SMF = OptimConfig(method="smf", optimizer="sgd", learning_rate=1.0, top_t=4)


def parts(model):
    _, tables, rest = nnx.split(model, MemoryValues, ...)
    return jax.tree.leaves(nnx.as_pure(tables)), jax.tree.leaves(nnx.as_pure(rest))


def places(arrays) -> list[int]:
    return [array.unsafe_buffer_pointer() for array in arrays]


def test_a_run_that_begins_trains_the_arrays_of_the_model():
    model = make_model(model_config())
    tables, rest = parts(model)

    _, state, frozen = init_state(model, make_method(SMF, 3))

    assert places(jax.tree.leaves(state.trainable)) == places(tables)
    assert places(jax.tree.leaves(frozen)) == places(rest)


def test_a_run_that_goes_on_frees_what_it_is_about_to_load():
    model = make_model(model_config())
    tables, rest = parts(model)

    _, state, frozen = split_to_restore(model, make_method(SMF, 3))

    assert [table.is_deleted() for table in tables] == [True]
    (shape,) = jax.tree.leaves(state.trainable)
    assert isinstance(shape, jax.ShapeDtypeStruct)
    assert places(jax.tree.leaves(frozen)) == places(rest)
