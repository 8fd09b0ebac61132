"""The same layer and step in PyTorch, from the same weights, on the same batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smf_jax import hf
from smf_jax.config import OptimConfig
from smf_jax.data.tokenizer import train_tokenizer
from smf_jax.model.transformer import Transformer
from smf_jax.optim.methods import make_method
from smf_jax.slots import select
from smf_jax.slots.document_frequency import Background
from smf_jax.train.state import init_state
from smf_jax.train.step import make_step
from smf_jax.verbs.usage import make_read_counter
from tests import tiny, torch_models
from tests.tiny import make_batch, make_model, memory_config, model_config

torch_models.require_torch()

import torch  # noqa: E402
import transformers  # noqa: E402

from smf_jax import torch_baseline  # noqa: E402

TOP_T, STEPS, RATE, DOCUMENTS = 6, 10, 0.7, 9
# float32 sums of a few tens of terms near 1, in another order.
TOLERANCE = 1e-5
CASES = {
    "replace": {"placement": "replace"},
    "add": {"placement": "add"},
    "normed keys": {"key_norm": True, "query_norm": False},
    "relevance gate": {"placement": "add", "relevance_gate": True},
    "two layers, one table": {"layers": (0, 1)},
    "two layers, two tables": {"layers": (0, 1), "share_values": False},
}


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(params=CASES.values(), ids=CASES)
def pair(request, tmp_path):
    """Returns our model and what PyTorch loads of its export."""
    ours = make_model(model_config(memory=memory_config(**request.param)))
    tokenizer = train_tokenizer(["a b c"], "word", 9)
    hf.export_model(ours, tokenizer, tmp_path / "exported")
    return ours, torch_baseline.load(tmp_path / "exported")


def our_output(model, batch):
    graph, params = nnx.split(model)
    tokens = jnp.asarray(batch.tokens)
    return jax.jit(lambda params: nnx.merge(graph, params)(tokens))(params)


@torch.no_grad()
def their_output(model, batch):
    logits = model(input_ids=torch.as_tensor(batch.tokens).long()).logits
    layers = [layer.mlp for layer in model.model.layers]
    kind = torch_baseline.MemoryFeedForward
    return logits, [mlp.memory.reads for mlp in layers if isinstance(mlp, kind)]


def by_slot(slots, weights):
    """Returns each token's reads in the order of their slots; a slot may come twice."""
    order = np.lexsort((weights, slots))
    return np.take_along_axis(slots, order, -1), np.take_along_axis(weights, order, -1)


def test_logits_and_reads_are_alike(pair):
    ours, theirs = pair
    batch = make_batch()

    logits, reads = our_output(ours, batch)
    their_logits, their_reads = their_output(theirs, batch)

    np.testing.assert_allclose(logits, their_logits, atol=TOLERANCE)
    assert len(reads) == len(their_reads) > 0
    for read, their_read in zip(reads, their_reads, strict=True):
        got = by_slot(np.asarray(read.slots), np.asarray(read.weights))
        want = by_slot(their_read.slots.numpy(), their_read.weights.numpy())
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_allclose(got[1], want[1], atol=TOLERANCE)


def test_ten_steps_write_the_same_slots_with_the_same_values(pair):
    ours, theirs = pair
    memory = ours.config.memory
    shape = (memory.num_tables, memory.num_slots)
    frequency = np.random.default_rng(1).integers(0, DOCUMENTS + 1, shape, np.int32)
    optim = OptimConfig(method="smf", optimizer="sgd", learning_rate=RATE, top_t=TOP_T)
    method = make_method(optim, STEPS)
    graph, state, frozen = init_state(ours, method)
    step = make_step(graph, memory, method, 1)
    background = Background(jnp.asarray(frequency), jnp.asarray(DOCUMENTS))
    optimizer = torch_baseline.train_only_values(theirs, RATE)
    known = torch.as_tensor(frequency)
    count = make_read_counter(graph, memory)

    for number in range(STEPS):
        batch = make_batch(seed=number)
        before = tables_of(state)
        counts = count((state.trainable, frozen), batch)
        scores = jax.vmap(select.tfidf, (0, 0, None))(counts, *background)
        chosen = [set(np.asarray(select.top_slots(pool, TOP_T))) for pool in scores]
        state, metrics = step(state, frozen, background, batch)
        after = tables_of(state)
        done = torch_baseline.smf_step(
            theirs, optimizer, batch, known, DOCUMENTS, TOP_T
        )

        np.testing.assert_allclose(metrics["loss"], done.loss, atol=TOLERANCE)
        assert metrics["slots_written"] == sum(len(slots) for slots in done.slots)
        their_tables = theirs.model.memory_values
        pools = zip(before, after, chosen, done.slots, their_tables, strict=True)
        for old, new, slots, their_slots, their_table in pools:
            there = {slot for slot in slots if slot < memory.num_slots}
            assert set(their_slots.tolist()) == there
            # A chosen row may have a gradient of 0, so that it does not move.
            moved = tiny.moved_rows(old, new)
            assert moved <= there
            assert len(moved) > 0
            got = their_table.detach().numpy()
            np.testing.assert_allclose(new, got, atol=TOLERANCE)


def tables_of(state):
    return [np.array(table) for table in jax.tree.leaves(state.trainable)]


@pytest.mark.parametrize("seed", range(5))
def test_the_same_slots_are_chosen_also_among_equals(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, 50, np.int32)  # few values: many ties at the cut
    frequency = rng.integers(0, 3, 50, np.int32)

    scores = select.tfidf(jnp.asarray(counts), jnp.asarray(frequency), 5)
    want = np.asarray(select.top_slots(scores, 12))
    their_scores = torch_baseline.tfidf(
        torch.as_tensor(counts), torch.as_tensor(frequency), 5
    )
    got = torch_baseline.top_slots(their_scores, 12)

    np.testing.assert_allclose(scores, their_scores, atol=1e-7)
    assert set(got.tolist()) == set(want[want < 50].tolist())


def test_all_but_the_tables_is_frozen(pair):
    _, theirs = pair
    tables = {id(table) for table in theirs.model.memory_values}
    frozen = {
        name: param.detach().clone()
        for name, param in theirs.named_parameters()
        if id(param) not in tables
    }
    memory = theirs.model.layers[1].mlp.memory.config
    known = torch.zeros((memory.num_tables, memory.num_slots), dtype=torch.int32)

    optimizer = torch_baseline.train_only_values(theirs, RATE)
    torch_baseline.smf_step(theirs, optimizer, make_batch(), known, DOCUMENTS, TOP_T)

    params = dict(theirs.named_parameters())
    assert all(torch.equal(params[name], value) for name, value in frozen.items())


@pytest.fixture
def plain():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=12,
        intermediate_size=10,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def test_a_memory_that_is_added_to_any_decoder_changes_nothing_at_first(plain):
    tokens = torch.as_tensor(make_batch().tokens).long()
    memory = memory_config(placement="add", layers=(0, 1), relevance_gate=True)
    with torch.no_grad():
        want = plain(input_ids=tokens).logits
        got = torch_baseline.add_memory(plain, memory)(input_ids=tokens).logits

    assert torch.equal(got, want)
    with pytest.raises(NotImplementedError, match="without its memory"):
        plain.save_pretrained("nowhere")


def test_a_memory_that_is_added_begins_in_the_ranges_of_ours(plain):
    memory = memory_config(num_keys=64, value_dim=128, key_dim=16, relevance_gate=True)
    ours = tiny.named(Transformer(model_config(memory=memory), rngs=nnx.Rngs(0)))

    theirs = torch_baseline.add_memory(plain, memory)

    layer = theirs.model.layers[1].mlp.memory
    pairs = {
        "values/0": theirs.model.memory_values[0],
        "blocks/1/memory/keys": layer.keys,
        "blocks/1/memory/query/kernel": layer.query.weight,
        "blocks/1/memory/gate/kernel": layer.gate.weight,
        "blocks/1/memory/out/kernel": layer.out.weight,
        "blocks/1/memory/relevance/kernel": layer.relevance.weight,
        "blocks/1/memory/relevance/bias": layer.relevance.bias,
    }
    for name, tensor in pairs.items():
        # Some hundreds of draws at least: their spreads differ by a tenth at most.
        assert float(tensor.detach().std(correction=0)) == pytest.approx(
            float(ours[name].std()), rel=0.15
        )
