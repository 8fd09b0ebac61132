import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from smf_jax.config import LoraConfig, ModelConfig, OptimConfig
from smf_jax.data.batches import with_loss_positions
from smf_jax.model import loss
from smf_jax.model.lora import LoRAParam, add_lora
from smf_jax.model.memory import MemoryValues, Reads
from smf_jax.model.transformer import Transformer
from smf_jax.optim.methods import Method, make_method
from smf_jax.slots.document_frequency import Background
from smf_jax.train.smf_step import count_table_reads
from smf_jax.train.state import init_state
from smf_jax.train.step import make_step
from smf_jax.verbs.usage import make_read_counter
from tests.reference import smf_step, tfidf
from tests.tiny import (
    AS_FOR_USERS,
    NUM_SLOTS,
    VALUE_DIM,
    VOCAB,
    bits,
    call,
    fill,
    make_batch,
    make_model,
    memory_config,
    model_config,
    moved_rows,
    named,
)

RATE, TOP_T, NUM_DOCUMENTS = 2.0, 8, 12
SMF = OptimConfig(method="smf", optimizer="sgd", learning_rate=RATE, top_t=TOP_T)
ADAMW = dataclasses.replace(
    SMF, optimizer="adamw", learning_rate=0.5, max_grad_norm=1.0, warmup_steps=3
)
FULL = OptimConfig(method="full", optimizer="sgd", learning_rate=1.0)
MUON = OptimConfig(method="full", optimizer="muon", weight_decay=0.1)
LORA = OptimConfig(method="lora", learning_rate=0.1, lora=LoraConfig(rank=3))
FREQUENCY = np.random.default_rng(0).integers(0, NUM_DOCUMENTS + 1, (2, NUM_SLOTS))


def kind(optim: OptimConfig) -> str:
    return f"{optim.method} {optim.optimizer}"


ONE, DENSE = model_config(), model_config(num_layers=1, memory=None)
MEMORIES = {
    "one memory": ONE,
    "two memories, one table": model_config(memory=memory_config(layers=(0, 1))),
    "two tables": model_config(memory=memory_config(layers=(0, 1), share_values=False)),
}
every_memory = pytest.mark.parametrize("config", MEMORIES.values(), ids=MEMORIES.keys())


def background(config: ModelConfig) -> Background | None:
    if config.memory is None:
        return None
    frequency = jnp.asarray(FREQUENCY[: config.memory.num_tables], jnp.int32)
    return Background(frequency, jnp.asarray(NUM_DOCUMENTS))


def all_taught(batch):
    return batch._replace(weights=(batch.segments > 0).astype(np.float32))


def model_for(config: ModelConfig, optim: OptimConfig) -> nnx.Module:
    if optim.method != "lora":
        return make_model(config)

    def make():
        model = Transformer(config, rngs=nnx.Rngs(0))
        add_lora(model, optim.lora, rngs=nnx.Rngs(1))
        return model

    return fill(make)


@functools.cache
def compiled_step(config: ModelConfig, optim: OptimConfig, grad_accum_steps: int):
    method = make_method(optim, steps=10)
    graph, _, _ = init_state(model_for(config, optim), method)
    return jax.jit(make_step(graph, config.memory, method, grad_accum_steps))


def teach(config, optim, *batches, grad_accum_steps=1):
    """Returns the model before, the model after a step on each batch, the metrics."""
    before = model_for(config, optim)
    method = make_method(optim, steps=10)
    graph, state, frozen = init_state(nnx.clone(before), method)
    step = compiled_step(config, optim, grad_accum_steps)
    for batch in batches:
        state, metrics = step(state, frozen, background(config), batch)
    return before, nnx.merge(graph, state.trainable, frozen), metrics


def inputs(batch):
    return map(jnp.asarray, (batch.tokens, batch.positions, batch.segments))


def mean_loss(model, batch):
    logits, _ = model(*inputs(batch))
    nats = -jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.asarray(batch.targets)[..., None], axis=-1
    )
    return (nats[..., 0] * batch.weights).sum() / batch.weights.sum()


def loss_and_table_gradients(model, batch):
    graph, values, rest = nnx.split(model, MemoryValues, ...)

    @jax.jit
    @jax.value_and_grad
    def of_values(values):
        return mean_loss(nnx.merge(graph, values, rest), batch)

    value, gradients = of_values(nnx.as_pure(values))
    return value, jax.tree.leaves(gradients)


def read_slots(model, batch):
    _, reads = call(model, *inputs(batch))
    return [np.asarray(read.slots) for read in reads]


def tables(model):
    return [np.asarray(table[...]) for table in model.values]


def assert_same_bits(got: nnx.Module, want: nnx.Module, but: str = "nothing"):
    got, want = named(got), named(want)
    assert got.keys() == want.keys()
    assert [
        name
        for name in want
        if not re.search(but, name) and (bits(got[name]) != bits(want[name])).any()
    ] == []


@every_memory
def test_a_sparse_step_is_a_dense_step_of_which_other_rows_are_masked(config):
    batch = all_taught(make_batch())
    before, after, metrics = teach(config, SMF, batch)
    reads = read_slots(before, batch)
    loss, gradients = loss_and_table_gradients(before, batch)
    written = 0

    for pool, gradient in enumerate(gradients):
        chosen, want = smf_step.step(
            tables(before)[pool],
            gradient,
            reads if config.memory.share_values else [reads[pool]],
            batch.segments > 0,
            (FREQUENCY[pool], NUM_DOCUMENTS),
            TOP_T,
            RATE,
        )
        got = tables(after)[pool]
        assert moved_rows(tables(before)[pool], got) == set(chosen)
        # float32 sums over the tokens in another order, times a rate of 2
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
        written += len(chosen)

    assert float(metrics["loss"]) == pytest.approx(float(loss), abs=1e-5)  # float32
    assert int(metrics["slots_written"]) == written == TOP_T * len(gradients)


@every_memory
def test_a_sparse_step_changes_no_bit_but_of_the_tables(config):
    before, after, _ = teach(config, SMF, make_batch(seed=1), make_batch(seed=2))

    assert_same_bits(after, before, but="^values/")
    assert all(
        moved_rows(*pair) for pair in zip(tables(before), tables(after), strict=True)
    )


def test_slots_that_were_not_read_are_not_written_to_fill_up():
    batch = all_taught(make_batch(lengths=(1, 0, 0, 0)))
    before, after, metrics = teach(ONE, SMF, batch)
    counts = tfidf.count_reads(
        read_slots(before, batch)[0], batch.segments > 0, NUM_SLOTS
    )
    want = set(np.flatnonzero((counts > 0) & (FREQUENCY[0] < NUM_DOCUMENTS)).tolist())
    assert 0 < len(want) < TOP_T

    assert moved_rows(tables(before)[0], tables(after)[0]) == want
    assert int(metrics["slots_written"]) == len(want)


def test_a_batch_in_parts_writes_the_slots_of_the_whole():
    config = MEMORIES["two memories, one table"]
    batch = make_batch()  # texts of unlike lengths, so of unlike weight
    before, whole, _ = teach(config, SMF, batch)
    _, parts, _ = teach(config, SMF, batch, grad_accum_steps=4)

    start, want, got = (tables(model)[0] for model in (before, whole, parts))
    assert moved_rows(start, got) == moved_rows(start, want)
    # The parts' float32 sums are added in another order.
    np.testing.assert_allclose(got - start, want - start, rtol=0, atol=1e-6)


def test_a_dense_step_in_parts_is_one_step_on_the_whole():
    _, whole, want = teach(DENSE, FULL, make_batch())
    _, parts, got = teach(DENSE, FULL, make_batch(), grad_accum_steps=4)

    for name, leaf in named(whole).items():
        # The parts' float32 sums are added in another order.
        np.testing.assert_allclose(named(parts)[name], leaf, rtol=0, atol=1e-6)
    for name in ("loss", "gradient_norm", "tokens"):
        assert float(got[name]) == pytest.approx(float(want[name]), rel=1e-5)


# By SGD: Adam's first step makes as much of rounding as of a gradient.
@pytest.mark.parametrize(
    "optim", [SMF, FULL, dataclasses.replace(LORA, optimizer="sgd")], ids=kind
)
def test_pieces_of_logits_in_parts_of_a_batch_change_no_step(optim, monkeypatch):
    config = model_config(tie_embeddings=False)
    _, whole, want = teach(config, optim, make_batch(), grad_accum_steps=2)
    monkeypatch.setitem(loss.LOGITS_PER_CHUNK, "cpu", 1)
    monkeypatch.setattr(loss, "MIN_TOKENS", 5)  # of the 18 of each part
    compiled_step.cache_clear()

    _, pieces, got = teach(config, optim, make_batch(), grad_accum_steps=2)

    compiled_step.cache_clear()
    for name, leaf in named(whole).items():
        # The pieces' float32 sums are added in another order, and the step of a factor
        # of LoRA is 0.1 for any gradient, a small one included.
        np.testing.assert_allclose(named(pieces)[name], leaf, rtol=0, atol=5e-5)
    assert float(got["loss"]) == pytest.approx(float(want["loss"]), rel=1e-5)


@pytest.mark.parametrize("optim", [SMF, FULL, LORA], ids=kind)
@pytest.mark.parametrize("parts", [1, 2])
def test_that_few_targets_have_a_loss_may_be_told(optim, parts):
    batch = make_batch()
    batch = batch._replace(weights=batch.weights * (batch.positions > 3))
    (told,) = with_loss_positions([batch])
    assert told.loss_positions.shape == (
        4,
        4,
    )  # of nine, for the longest text has eight

    _, got, got_metrics = teach(ONE, optim, told, grad_accum_steps=parts)
    _, want, metrics = teach(ONE, optim, batch, grad_accum_steps=parts)

    assert got_metrics["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-6)
    for mine, theirs in zip(named(got).values(), named(want).values(), strict=True):
        # float32 sums in another order; Adam makes a rate of any gradient
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("optim", [SMF, FULL], ids=kind)
def test_what_stands_in_padding_changes_nothing(optim):
    config = ONE if optim is SMF else DENSE
    batch = make_batch()
    padding, rng = batch.segments == 0, np.random.default_rng(1)
    noise = rng.integers(0, VOCAB, batch.tokens.shape, np.int32)
    noisy = batch._replace(
        tokens=np.where(padding, noise, batch.tokens),
        targets=np.where(padding, noise, batch.targets),
        positions=np.where(padding, noise, batch.positions),
    )
    assert (noisy.tokens != batch.tokens).any()
    _, want, want_metrics = teach(config, optim, batch)

    _, got, got_metrics = teach(config, optim, noisy)

    assert_same_bits(got, want)
    assert got_metrics == want_metrics


def test_more_padding_changes_nothing():
    batch = make_batch()
    wider = jax.tree.map(lambda leaf: np.pad(leaf, ((0, 0), (0, 3))), batch)
    before, want, _ = teach(ONE, SMF, batch)

    _, got, metrics = teach(ONE, SMF, wider)

    start, want, got = (tables(model)[0] for model in (before, want, got))
    assert moved_rows(start, got) == moved_rows(start, want)
    # Another program for the same float32 sums.
    np.testing.assert_allclose(got - start, want - start, rtol=0, atol=1e-6)
    assert int(metrics["tokens"]) == 8 + 3 + 6 + 5


def test_a_batch_without_a_target_moves_nothing():
    batch = make_batch()._replace(weights=np.zeros((4, 9), np.float32))

    before, after, metrics = teach(ONE, SMF, batch)

    assert_same_bits(after, before)
    assert float(metrics["loss"]) == 0


def test_a_full_step_moves_every_parameter():
    before, after, _ = teach(ONE, FULL, make_batch())

    assert [
        name
        for name, leaf in named(after).items()
        if (bits(leaf) == bits(named(before)[name])).all()
    ] == []


def test_balance_makes_a_dense_step_read_more_evenly():
    optim = OptimConfig(optimizer="sgd", learning_rate=0.1)
    batch, method = make_batch(), make_method(optim, steps=10)
    uneven = {}
    for balance_weight in (1e-6, 1.0):
        graph, state, frozen = init_state(make_model(model_config()), method)
        step = jax.jit(make_step(graph, memory_config(), method, 1, balance_weight))
        for _ in range(5):
            state, metrics = step(state, frozen, None, batch)
        uneven[balance_weight] = float(metrics["balance_loss"])

    assert uneven[1.0] < uneven[1e-6]


def test_balance_is_refused_with_slot_selection_and_with_accumulation():
    full = make_method(FULL, steps=10)
    method = make_method(SMF, steps=10)
    graph, _, _ = init_state(make_model(model_config()), method)

    with pytest.raises(ValueError, match=r"balance_weight=1.0"):
        make_step(graph, memory_config(), method, 1, balance_weight=1.0)
    with pytest.raises(ValueError, match=r"grad_accum_steps=1, not 2"):
        make_step(graph, memory_config(), full, 2, balance_weight=1.0)


def test_the_table_of_a_model_has_a_rate_of_its_own():
    def moved(**rate):
        method = make_method(FULL, 10, **rate)
        graph, state, frozen = init_state(make_model(model_config()), method)
        before = nnx.as_pure(nnx.split(make_model(model_config()))[1])
        after, _ = jax.jit(make_step(graph, memory_config(), method, 1))(
            state, frozen, None, make_batch()
        )
        return jax.tree.map(jnp.subtract, after.trainable, before)

    plain, faster = moved(), moved(values_lr_scale=4.0)

    # A power of two scales the steps exactly; adding them to the table rounds.
    np.testing.assert_allclose(
        faster["values"][0], 4 * plain["values"][0], rtol=0, atol=1e-5
    )
    np.testing.assert_array_equal(faster["embedding"], plain["embedding"])


def test_the_loss_of_a_balanced_step_is_that_of_the_batch_alone():
    batch, method = make_batch(), make_method(OptimConfig(), steps=10)
    graph, state, frozen = init_state(make_model(model_config()), method)
    step = jax.jit(make_step(graph, memory_config(), method, 1, balance_weight=1.0))

    _, metrics = step(state, frozen, None, batch)

    want = mean_loss(make_model(model_config()), batch)
    # The same float32 sums in another program.
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)


def test_a_lora_step_moves_the_factors_and_nothing_else():
    before, after, _ = teach(ONE, LORA, make_batch())

    assert_same_bits(after, before, but=r"/(down|up)$")
    factors = nnx.to_flat_state(nnx.state(after, LoRAParam))
    assert len(factors.leaves) == 2 * (2 * 4 + 3)  # attentions, one feed-forward
    for path, factor in zip(factors.paths, factors.leaves, strict=True):
        old = named(before)["/".join(map(str, path))]
        assert (bits(factor[...]) != bits(old)).any()


def test_teaching_again_gives_the_same_bits():
    batches = [make_batch(seed=seed) for seed in range(3)]
    _, want, want_metrics = teach(ONE, SMF, *batches)

    _, got, got_metrics = teach(ONE, SMF, *batches)

    assert_same_bits(got, want)
    assert got_metrics == want_metrics


def test_teaching_lowers_the_loss_of_what_was_taught():
    _, _, first = teach(ONE, SMF, make_batch())

    _, _, last = teach(ONE, SMF, *[make_batch()] * 5)

    assert float(last["loss"]) < float(first["loss"])


def test_with_one_memory_a_text_reads_the_same_slots_before_and_after():
    before, after, _ = teach(ONE, SMF, make_batch(seed=1), make_batch(seed=2))
    text = jnp.asarray(make_batch(seed=3).tokens)

    want, (want_reads,) = call(before, text)
    got, (got_reads,) = call(after, text)

    assert (bits(got) != bits(want)).any()
    np.testing.assert_array_equal(got_reads.slots, want_reads.slots)
    np.testing.assert_array_equal(bits(got_reads.weights), bits(want_reads.weights))


def ready(config, method):
    """Returns the step as the package compiles it, and its arguments but a batch."""
    graph, state, frozen = init_state(make_model(config), method)
    step = make_step(graph, config.memory, method, grad_accum_steps=1)
    return step, state, frozen, background(config)


def test_a_step_compiles_once_and_gives_its_memory_back():
    step, state, *rest = ready(ONE, make_method(SMF, steps=10))

    for seed in range(3):
        given = jax.tree.leaves(state.trainable)
        state, _ = step(state, *rest, make_batch(seed=seed))
        assert all(table.is_deleted() for table in given)

    assert step._cache_size() == 1


@pytest.mark.parametrize("optim", [SMF, ADAMW, FULL, MUON], ids=kind)
def test_a_step_returns_the_types_that_it_takes(optim):
    step, state, *rest = ready(ONE, make_method(optim, steps=10))
    want = jax.tree.map(jax.typeof, state)

    got, _ = jax.eval_shape(step, state, *rest, make_batch())

    def type_of(leaf):
        return leaf.shape, leaf.dtype, leaf.weak_type

    assert jax.tree.map(type_of, got) == jax.tree.map(type_of, want)


def table_operations(method, config=ONE, shape=(NUM_SLOTS, VALUE_DIM)):
    """Counts the compiled operations that make an array of the table's shape."""
    step, *args = ready(config, method)
    options = {"xla_backend_optimization_level": 0}  # of the machine code alone
    text = step.lower(*args, make_batch()).compile(options | AS_FOR_USERS).as_text()
    rows, width = shape
    made = rf"= f32\[{rows},{width}\]\S* ([\w-]+)\("
    return collections.Counter(re.findall(made, text))


def test_a_sparse_step_makes_no_array_as_large_as_the_table():
    made = table_operations(make_method(ADAMW, steps=10))

    # What passes a table on, and what writes rows into it, alone or in a fusion.
    assert made.keys() <= {"parameter", "get-tuple-element", "scatter", "fusion"}
    assert made["scatter"] == 3  # the table and two moments
    assert made["fusion"] <= 3


def test_an_update_of_everything_copies_no_moments():
    made = table_operations(make_method(OptimConfig(), steps=10))

    assert "fusion" in made
    assert "copy" not in made


def test_a_dense_step_shows_what_a_sparse_one_must_not():
    dense = Method(
        MemoryValues, optax.with_extra_args_support(optax.sgd(RATE)), None, 0
    )

    made = table_operations(dense)

    assert made.keys() >= {"broadcast", "add", "multiply"}


@every_memory
def test_layers_that_share_a_table_add_their_reads(config):
    rng, is_token = np.random.default_rng(0), make_batch().segments > 0
    shape = (*is_token.shape, 6)
    slots = [rng.integers(0, NUM_SLOTS, shape) for _ in config.memory.layers]
    counts = [tfidf.count_reads(read, is_token, NUM_SLOTS) for read in slots]
    want = [sum(counts)] if config.memory.share_values else counts

    reads = tuple(Reads(jnp.asarray(read), jnp.ones(shape)) for read in slots)
    got = count_table_reads(reads, jnp.asarray(is_token), config.memory)

    np.testing.assert_array_equal(got, want)


def test_the_reads_of_a_document_are_those_of_its_tokens():
    config, batch = MEMORIES["two tables"], make_batch(lengths=(2, 0, 1, 0))
    model = make_model(config)
    want = [
        tfidf.count_reads(slots, batch.segments > 0, NUM_SLOTS)
        for slots in read_slots(model, batch)
    ]
    graph, params = nnx.split(model)

    got = make_read_counter(graph, config.memory)((nnx.as_pure(params),), batch)

    np.testing.assert_array_equal(got, want)
    assert not np.all(want)
