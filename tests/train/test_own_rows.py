"""Steps in which each fact has rows of its own, and answered facts have left."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smf_jax.config import OptimConfig, PerFactConfig
from smf_jax.optim.methods import make_method
from smf_jax.train.state import init_state
from smf_jax.train.step import make_step
from tests.tiny import (
    NUM_SLOTS,
    call,
    make_batch,
    make_model,
    model_config,
    moved_rows,
)

RATE, OWN = 0.25, 3
OPTIM = OptimConfig(
    method="smf",
    optimizer="normalized",
    learning_rate=RATE,
    select="contrastive",
    per_fact=PerFactConfig(rows=OWN),
)


def own_rows_of(model, batch):
    """Returns, for each row of a batch, some slots that only its tokens read."""
    _, (reads,) = call(model, *map(jnp.asarray, batch[:1] + batch[3:5]))
    of_rows = [
        set(np.asarray(slots)[is_token].ravel().tolist())
        for slots, is_token in zip(reads.slots, batch.segments > 0, strict=True)
    ]
    own = []
    for number, slots in enumerate(of_rows):
        others = set().union(*(of for n, of in enumerate(of_rows) if n != number))
        own.append(sorted(slots - others)[:OWN] or sorted(slots)[:OWN])
    return np.array(
        [np.pad(of, (0, OWN - len(of)), constant_values=2**30) for of in own], np.int32
    )


def batch_of_facts():
    """Returns a batch of which each row is one fact, with its own rows."""
    batch = make_batch()
    records = np.broadcast_to(np.arange(4, dtype=np.int32)[:, None], batch.tokens.shape)
    weights = (batch.segments > 0).astype(np.float32)
    batch = batch._replace(records=records, weights=weights)
    return batch._replace(own_rows=own_rows_of(make_model(model_config()), batch))


def step_on(batch, optim=OPTIM):
    """Returns the table before and after one step, and its metrics."""
    model, method = (
        make_model(model_config()),
        make_method(optim, 10, facts_per_step=4),
    )
    before = np.asarray(model.values[0][...])
    graph, state, frozen = init_state(model, method)
    step = jax.jit(make_step(graph, model_config().memory, method))
    state, metrics = step(state, frozen, None, batch)
    (after,) = jax.tree.leaves(state.trainable)
    return before, np.asarray(after), metrics


def rows_in(own):
    return {row for row in own.ravel().tolist() if row < NUM_SLOTS}


def test_the_rows_of_the_facts_are_written_and_each_moves_by_the_rate():
    batch = batch_of_facts()

    before, after, metrics = step_on(batch)

    written = rows_in(batch.own_rows)
    assert moved_rows(before, after) == written
    assert int(metrics["slots_written"]) == len(written)
    lengths = np.linalg.norm(after - before, axis=1)[sorted(written)]
    # a float32 difference of rows of length 1
    np.testing.assert_allclose(lengths, RATE, rtol=1e-5)


def test_rows_move_against_their_gradient():
    batch = batch_of_facts()
    plain = dataclasses.replace(OPTIM, optimizer="sgd", learning_rate=1.0)
    before, by_gradient, _ = step_on(batch, plain)

    _, after, _ = step_on(batch)

    for row in rows_in(batch.own_rows):
        step, gradient = after[row] - before[row], by_gradient[row] - before[row]
        along = step @ gradient / np.linalg.norm(step) / np.linalg.norm(gradient)
        assert along == pytest.approx(1, abs=1e-4)  # float32


def test_facts_that_are_answered_leave_the_step():
    batch = batch_of_facts()
    answered = dataclasses.replace(OPTIM.per_fact, answered=100.0)

    before, after, metrics = step_on(
        batch, dataclasses.replace(OPTIM, per_fact=answered)
    )

    np.testing.assert_array_equal(after, before)
    assert float(metrics["loss"]) == 0
    assert bool(metrics["updated"])


def test_only_the_rows_of_facts_that_are_left_are_written():
    batch = batch_of_facts()
    # Facts 1 and 3 have no token to learn, as if all were answered.
    weights = batch.weights * np.array([1, 0, 1, 0], np.float32)[:, None]
    batch = batch._replace(weights=weights)
    answered = dataclasses.replace(OPTIM.per_fact, answered=1e-3)

    before, after, _ = step_on(batch, dataclasses.replace(OPTIM, per_fact=answered))

    assert moved_rows(before, after) == rows_in(batch.own_rows[[0, 2]])


def test_a_row_of_padding_writes_nothing():
    batch = batch_of_facts()
    padded = jax.tree.map(
        lambda leaf: np.pad(leaf, [(0, 2)] + [(0, 0)] * (leaf.ndim - 1)), batch
    )
    _, want, _ = step_on(batch)

    _, got, _ = step_on(padded)

    # The same sums in a program of another shape.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
