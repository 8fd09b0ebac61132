import functools
import inspect
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from smf_jax.kernels.table_rows import put_rows
from smf_jax.optim.rows import only_rows, update_rows
from smf_jax.sharding import ONE_DEVICE
from tests.tiny import moved_rows

ROWS, WIDTH, TOP_T = 13, 3, 4
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "decay": optax.adamw(0.1, weight_decay=0.1),
    "clip": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
}
every_optimizer = pytest.mark.parametrize(
    "inner", OPTIMIZERS.values(), ids=OPTIMIZERS.keys()
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def step(inner, tables, state, gradient, slots):
    """Returns tables with the rows written, and the state."""
    update = update_rows(inner, gradient, state, tables, slots)
    write = functools.partial(put_rows, ONE_DEVICE)
    return jax.tree.map(write, tables, update.slots, update.rows), update.state


def per_row(table, state):
    """Returns the table and whatever of the state has its shape."""
    leaves = [table, *jax.tree.leaves(state)]
    return [leaf for leaf in leaves if leaf.shape == table.shape]


@every_optimizer
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_and_their_state_keep_every_bit_while_they_are_not_selected(inner, dtype):
    table = normal(0, ROWS, WIDTH).astype(dtype).at[:, 0].set(-0.0)
    state = inner.init(table)
    rng = np.random.default_rng(1)

    for number in range(100):
        # Ever fewer slots, from the last ten rows, and ids past the end for the rest.
        selected = 3 + rng.permutation(10)[: TOP_T - number // 30]
        slots = jnp.asarray([*selected, *range(ROWS, ROWS + TOP_T - len(selected))])
        gradient = rng.normal(size=(TOP_T, WIDTH))
        gradient[len(selected) :] = 0
        before = per_row(table, state)
        table, state = step(inner, table, state, jnp.asarray(gradient, dtype), slots)
        after = per_row(table, state)
        table_moved, *state_moved = map(moved_rows, before, after)
        assert table_moved == set(selected.tolist()), f"step {number}"
        # In bfloat16 a moment may be too large for a step to move it.
        assert table_moved.issuperset(set().union(*state_moved)), f"step {number}"


@every_optimizer
def test_a_dense_gradient_does_what_its_compact_rows_do(inner):
    tx, table = only_rows(inner), normal(0, ROWS, WIDTH)
    update = jax.jit(tx.update)
    dense_state = compact_state = tx.init(table)
    for seed, selected in enumerate([[7, 2, 9], [2, 0, ROWS], [9, 7, 12]]):
        slots, gradient = jnp.array(selected), normal(seed, ROWS, WIDTH)
        compact = gradient.at[slots].get(mode="fill", fill_value=0)

        rows, compact_state = update(compact, compact_state, table, slots=slots)
        updates, dense_state = update(gradient, dense_state, table, slots=slots)

        want = jnp.zeros_like(table).at[slots].set(rows, mode="drop")
        np.testing.assert_array_equal(updates, want)
        jax.tree.map(np.testing.assert_array_equal, dense_state, compact_state)


@every_optimizer
@pytest.mark.parametrize("slots", [[8, 1, 5], [*range(7, ROWS), *range(7)]], ids=len)
def test_rows_selected_at_every_step_move_as_in_a_table_of_their_own(inner, slots):
    slots = jnp.array(slots)
    table = normal(0, ROWS, WIDTH)
    own = table[slots]
    state, own_state = inner.init(table), inner.init(own)
    own_update = jax.jit(inner.update)

    for seed in range(5):
        gradient = normal(seed, len(slots), WIDTH)
        updates, own_state = own_update(gradient, own_state, own)
        own = optax.apply_updates(own, updates)
        table, state = step(inner, table, state, gradient, slots)

    np.testing.assert_array_equal(table[slots], own)


def test_sgd_moves_selected_rows_against_their_gradient():
    table = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    gradient, slots = jnp.array([[10.0, 0.0], [0.0, 20.0]]), jnp.array([2, 0])
    sgd = optax.sgd(0.1)

    got, _ = step(sgd, table, sgd.init(table), gradient, slots)

    assert got.tolist() == [[1, 0], [3, 4], [4, 6]]


def test_clipping_measures_the_selected_rows_alone():
    tx = only_rows(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)))
    table, slots = jnp.zeros((4, 2)), jnp.array([3, 1, 4])
    # The norm of rows 1 and 3 is 5, that of the whole is about 900.
    gradient = jnp.array([[900.0, 0.0], [3.0, 0.0], [0.0, 90.0], [0.0, 4.0]])

    updates, _ = tx.update(gradient, tx.init(table), table, slots=slots)

    want = [[0, 0], [-0.6, 0], [0, 0], [0, -0.8]]
    np.testing.assert_allclose(updates, want, rtol=1e-6)  # float32


def test_decay_pulls_selected_rows_alone():
    adamw = optax.adamw(1.0, weight_decay=0.25)
    table, slots = jnp.full((3, 2), 8.0), jnp.array([1, 3])

    got, _ = step(adamw, table, adamw.init(table), jnp.zeros((2, 2)), slots)

    assert got.tolist() == [[8, 8], [6, 6], [8, 8]]


def test_a_row_first_selected_late_gets_the_bias_correction_of_its_step():
    inner = optax.adam(1.0, b1=0.5, b2=0.5, eps=0.0)
    table = jnp.zeros((2, 1))
    state = inner.init(table)
    for slot in (0, 0, 0, 1):
        table, state = step(inner, table, state, jnp.ones((1, 1)), jnp.array([slot]))

    # Moments of half the gradient, over 1 - 0.5**4.
    want = -((0.5 / (1 - 0.5**4)) ** 0.5)
    np.testing.assert_allclose(table[1], [want], rtol=1e-6)  # float32


@pytest.mark.parametrize("name", ["momentum", "decay"])  # clipping couples tables
def test_each_table_of_a_tree_has_slots_of_its_own(name):
    inner = OPTIMIZERS[name]
    tables = {"low": normal(0, ROWS, WIDTH), "high": normal(1, 7, 5)}
    slots = {"low": jnp.array([8, 1]), "high": jnp.array([6, 7, 0, 2])}
    state = inner.init(tables)
    alone = {name: (table, inner.init(table)) for name, table in tables.items()}

    for seed in range(3):
        gradient = {
            "low": normal(seed, 2, WIDTH),
            "high": normal(seed, 4, 5).at[1].set(0.0),
        }
        tables, state = step(inner, tables, state, gradient, slots)
        for name in alone:
            alone[name] = step(inner, *alone[name], gradient[name], slots[name])

    for name, (table, _) in alone.items():
        # Compiled for other shapes, a sum may round otherwise.
        np.testing.assert_allclose(tables[name], table, rtol=1e-5, atol=1e-6)


def test_clipping_measures_the_selected_rows_of_all_tables():
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    tables = {"low": jnp.zeros((4, 1)), "high": jnp.zeros((3, 2))}
    slots = {"low": jnp.array([2]), "high": jnp.array([0])}
    gradient = {"low": jnp.array([[3.0]]), "high": jnp.array([[0.0, 4.0]])}

    updates, *_ = update_rows(inner, gradient, inner.init(tables), tables, slots)

    np.testing.assert_allclose(updates["low"], [[-0.6]], rtol=1e-6)  # float32
    np.testing.assert_allclose(updates["high"], [[0, -0.8]], rtol=1e-6)


def test_the_row_optimizer_refuses_to_guess_the_parameters():
    tx, table = only_rows(optax.sgd(0.1)), jnp.zeros((3, 2))

    with pytest.raises(ValueError, match="only_rows needs params"):
        tx.update(table, tx.init(table), slots=jnp.array([0]))


def test_the_row_optimizer_refuses_to_guess_the_slots():
    tx, table = only_rows(optax.sgd(0.1)), jnp.zeros((3, 2))

    with pytest.raises(TypeError, match="slots"):
        tx.update(table, tx.init(table), table)


CONFINED = """
    adabelief adadelta adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars
    lion nadam nadamw optimistic_adam_v2 optimistic_gradient_descent polyak_sgd radam
    rmsprop rprop sgd sign_sgd signum yogi contrib.acprop contrib.ademamix contrib.adopt
    contrib.cocob contrib.dadapt_adamw contrib.dog contrib.dowg contrib.madgrad
    contrib.momo contrib.momo_adam contrib.prodigy contrib.schedule_free_adamw
    contrib.schedule_free_sgd contrib.simplified_ademamix
""".split()
REFUSED = {
    "adafactor": "FactoredState.v_row of shape",
    "flatten": "only_rows is not for flatten",
    "contrib.galore": "ScaleByAdamState.mu of shape",
    "lbfgs": "ScaleByLBFGSState.diff_params_memory of shape",
    "contrib.muon": "a masked ScaleByAdamState.mu",
    "novograd": "ScaleByNovogradState.nu of shape",
    "sm3": "ScaleBySM3State.mu of shape",
    "zero_nans": "ZeroNansState.found_nan of shape",
}


def optimizer(name: str) -> optax.GradientTransformation:
    """Returns an optimizer of optax."""
    make = operator.attrgetter(name)(optax)
    if name == "flatten":
        return make(optax.sgd(0.1))
    has_rate = "learning_rate" in inspect.signature(make).parameters
    return make(learning_rate=0.1) if has_rate else make()


@pytest.mark.parametrize("name", CONFINED)
def test_an_optimizer_of_all_rows_does_what_it_does_to_a_table(name):
    inner = optimizer(name)
    dense, confined = optax.with_extra_args_support(inner), only_rows(inner)
    tables = [normal(0, ROWS, WIDTH)] * 2
    states = [dense.init(tables[0]), confined.init(tables[1])]
    slots = jnp.arange(ROWS)

    for seed in range(1, 3):
        gradient, more = normal(seed, ROWS, WIDTH), {"value": 1.0}
        updates, states[0] = dense.update(gradient, states[0], tables[0], **more)
        tables[0] = optax.apply_updates(tables[0], updates)
        more["slots"] = slots
        updates, states[1] = confined.update(gradient, states[1], tables[1], **more)
        tables[1] = optax.apply_updates(tables[1], updates)

    # Sums over a table and over its rows may differ in their order.
    np.testing.assert_allclose(tables[1], tables[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_whose_state_is_not_of_rows_is_refused_by_name(name):
    with pytest.raises(ValueError, match="only_rows is not for") as caught:
        only_rows(optimizer(name)).init(normal(0, ROWS, WIDTH))

    assert REFUSED[name] in str(caught.value)


@pytest.mark.parametrize(
    ("inner", "function"),
    [
        (optax.contrib.sophia(0.1), "obj_fn"),
        (optax.polyak_sgd(), "value_fn"),
    ],
)
def test_an_optimizer_that_evaluates_tables_is_refused(inner, function):
    tx, table = only_rows(inner), normal(0, ROWS, WIDTH)
    more = {"slots": jnp.arange(ROWS), function: jnp.sum}

    with pytest.raises(ValueError, match=f"only_rows .* calls {function}"):
        tx.update(table, tx.init(table), table, **more)
