import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from smf_jax.model.memory import MemoryValues
from smf_jax.optim.methods import Method, make_method
from smf_jax.runs import OpenRun
from smf_jax.slots.select import tfidf
from smf_jax.train.guard import (
    WINDOW,
    TrainingError,
    make_guard,
    require_finite,
    skips,
)
from smf_jax.train.state import init_state
from smf_jax.train.step import make_step
from tests.tiny import bits, make_batch
from tests.train.test_step import (
    ADAMW,
    FULL,
    LORA,
    MUON,
    ONE,
    SMF,
    TOP_T,
    background,
    kind,
    model_for,
)

every_method = pytest.mark.parametrize(
    "optim", [SMF, ADAMW, FULL, LORA, MUON], ids=kind
)
RECORDS = ["a", "b", "c", "d", "e"]


def poisoned(batch):
    """Returns a batch whose loss is not a number."""
    weights = batch.weights.copy()
    weights[0, 1] = np.nan
    return batch._replace(weights=weights)


def start(optim, max_skips=0, method=None):
    """Returns a function that takes steps from the same state, and that state."""
    model = model_for(ONE, optim)
    method = method or make_method(optim, steps=10)
    graph, state, frozen = init_state(model, method)
    step = jax.jit(make_step(graph, ONE.memory, method, 1, max_skips=max_skips))

    def run(state, *batches):
        for batch in batches:
            state, metrics = step(state, frozen, background(ONE), batch)
        return state, metrics

    return run, state


def same(state, other) -> bool:
    pairs = zip(
        jax.tree.leaves((state.trainable, state.opt_state)),
        jax.tree.leaves((other.trainable, other.opt_state)),
        strict=True,
    )
    return all((bits(a) == bits(b)).all() for a, b in pairs)


@every_method
def test_a_loss_that_is_not_finite_changes_no_bit_now_or_later(optim):
    good, bad = make_batch(seed=1), poisoned(make_batch(seed=2))
    run, state = start(optim)
    before, _ = run(state, good)

    after, metrics = run(before, bad, good, good)

    assert same(before, after)
    assert int(after.skipped) == 1  # the good ones after it are not counted
    assert not metrics["updated"]


@every_method
def test_a_skipped_batch_leaves_no_trace(optim):
    first, second = make_batch(seed=1), make_batch(seed=2)
    run, state = start(optim, max_skips=1)

    want, _ = run(state, first, second)
    got, metrics = run(state, first, poisoned(second), second)

    assert same(want, got)
    assert not same(state, got)
    assert int(got.skipped) == 1
    assert metrics["updated"]


@pytest.mark.parametrize("scale", [math.inf, math.nan, 3e38])
def test_a_row_that_would_not_be_finite_is_not_written(scale):
    rule = optax.chain(optax.trace(0.9), optax.scale(scale), optax.scale(1e6))
    tx = optax.with_extra_args_support(rule)
    run, state = start(SMF, method=Method(MemoryValues, tx, tfidf, TOP_T))

    after, metrics = run(state, make_batch())

    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["gradient_norm"])
    assert not metrics["updated"]
    assert int(metrics["slots_written"]) == 0
    assert same(state, after)


@every_method
def test_a_good_batch_is_not_skipped(optim):
    run, state = start(optim)

    after, metrics = run(state, make_batch())

    assert metrics["updated"]
    assert int(after.skipped) == int(metrics["skipped"]) == 0


# --- the host's side ---


def metrics(loss=1.0, norm=1.0, updated=True, skipped=0):
    numbers = {"loss": loss, "gradient_norm": norm}
    return {n: jnp.asarray(v) for n, v in numbers.items()} | {
        "updated": jnp.asarray(updated),
        "skipped": jnp.asarray(skipped),
    }


def look(tmp_path, *rows, max_skips=0, done=0, streaks=None):
    streaks = streaks or {"diverged": 0, "dead": 0}
    run = OpenRun(tmp_path, done, {}, {}, Console())
    with make_guard(run, max_skips, 100, RECORDS, streaks) as guard:
        for step, row in enumerate(rows, done + 1):
            guard(step, row, make_batch())


def noted(tmp_path) -> list[dict]:
    text = (tmp_path / "nonfinite.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("numbers", "what"),
    [
        ({"loss": math.nan, "norm": math.nan}, "the loss is nan"),
        ({"norm": math.inf}, "the gradient norm is inf"),
        ({}, "a row to be written is not finite"),
    ],
)
def test_it_stops_and_names_the_records_of_the_batch(tmp_path, numbers, what):
    row = metrics(**numbers, updated=False, skipped=1)

    with pytest.raises(TrainingError) as caught:
        look(tmp_path, metrics(), row)

    message = str(caught.value)
    assert f"step 2: {what}, so nothing was updated" in message
    assert "4 records (a, b, c, d)" in message
    assert "--on-nan skip=K" in message
    assert noted(tmp_path) == [{"step": 2, "what": what, "records": [*"abcd"]}]


def test_batches_are_skipped_up_to_a_bound(tmp_path, capsys):
    bad = [metrics(math.nan, updated=False, skipped=n) for n in (1, 2, 3)]

    look(tmp_path, bad[0], metrics(), bad[1], max_skips=2)
    assert [row["step"] for row in noted(tmp_path)] == [1, 3]
    assert capsys.readouterr().out.count("skipped step") == 2

    with pytest.raises(TrainingError):
        look(tmp_path, bad[2], max_skips=2, done=3)


def test_rows_from_before_an_interruption_are_not_written_twice(tmp_path):
    bad = metrics(math.nan, updated=False, skipped=1)

    look(tmp_path, bad, metrics(), bad, max_skips=9)
    look(tmp_path, bad, max_skips=9, done=2)  # step 3 once more

    assert [row["step"] for row in noted(tmp_path)] == [1, 3]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"loss": 3.1 * math.log(100)}, "3 times that of a uniform guess"),
        ({"loss": math.log(100), "norm": 0.0}, "the gradient is 0"),
    ],
)
def test_a_diverged_or_dead_run_is_stopped(tmp_path, row, what):
    look(tmp_path, *[metrics(**row)] * (WINDOW - 1), metrics(), metrics(**row))

    with pytest.raises(TrainingError, match=f"diverged: .*{what}.*learning_rate"):
        look(tmp_path, *[metrics(**row)] * WINDOW)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_parameter_that_is_not_finite_is_not_saved(number):
    params = {"a": jnp.zeros(3), "b": jnp.ones((2, 2))}
    require_finite(7, params)

    with pytest.raises(TrainingError, match="step 7: a parameter is not finite"):
        require_finite(7, params | {"b": params["b"].at[1, 0].set(number)})


def test_streaks_continue_after_an_interruption(tmp_path):
    streaks, dead = {"diverged": 0, "dead": 0}, metrics(loss=9.0, norm=0.0)

    look(tmp_path, *[dead] * (WINDOW - 1), streaks=streaks)

    with pytest.raises(TrainingError):
        look(tmp_path, dead, streaks=streaks)


def test_a_gradient_of_0_is_fine_once_all_is_learned(tmp_path):
    look(tmp_path, *[metrics(loss=0.0, norm=0.0)] * (2 * WINDOW))


@pytest.mark.parametrize(
    ("on_nan", "want"), [("stop", 0), ("skip=0", 0), ("skip=7", 7)]
)
def test_on_nan_sets_the_bound(on_nan, want):
    assert skips(on_nan) == want
