"""The same layer and step in PyTorch, from the same weights, on the same batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smf_jax import hf
from smf_jax.config import OptimConfig, RopeConfig, RopeScalingConfig
from smf_jax.data.tokenizer import train_tokenizer
from smf_jax.model import build
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
    "calibrated": tiny.calibrated_config(num_rows=None),
    "calibrated, written rows": tiny.calibrated_config(num_rows=11),
}


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def exported(request, tmp_path_factory):
    """Returns the configuration of a model, and where it was exported."""
    memory = request.param
    if isinstance(memory, dict):
        memory = memory_config(**memory)
    config = model_config(memory=memory)
    folder = tmp_path_factory.mktemp("torch") / "exported"
    tokenizer = train_tokenizer(["a b c"], "word", 9)
    hf.export_model(make_model(config), tokenizer, folder)
    return config, folder


@pytest.fixture
def pair(exported):
    """Returns our model and what PyTorch loads of its export."""
    config, folder = exported
    return make_model(config), torch_baseline.load(folder)


def by_slot(slots, weights):
    """Returns each token's reads in the order of their slots; a slot may come twice."""
    slots, weights = np.asarray(slots), np.asarray(weights)
    order = np.lexsort((weights, slots))
    return np.take_along_axis(slots, order, -1), np.take_along_axis(weights, order, -1)


def test_logits_and_reads_are_alike(pair):
    model, torch_model = pair
    batch = make_batch()

    logits, reads = tiny.call(model, batch.tokens)
    with torch.no_grad():
        tokens = torch.as_tensor(batch.tokens).long()
        torch_logits = torch_model(input_ids=tokens).logits

    np.testing.assert_allclose(logits, torch_logits, atol=TOLERANCE)
    layers = torch_baseline.memory_layers(torch_model)
    assert len(reads) == len(layers) > 0
    for read, layer in zip(reads, layers, strict=True):
        got = by_slot(*read)
        want = by_slot(layer.slots, layer.weights.detach())
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_allclose(got[1], want[1], atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_positions_are_scaled_alike(kind, tmp_path):
    scaling = RopeScalingConfig(type=kind, factor=4.0, original_max_position=4)
    model = make_model(model_config(rope=RopeConfig(scaling=scaling)))
    tokenizer = train_tokenizer(["a b c"], "word", 9)
    hf.export_model(model, tokenizer, tmp_path / "out")
    tokens = make_batch().tokens

    with torch.no_grad():
        torch_model = torch_baseline.load(tmp_path / "out")
        want = torch_model(input_ids=torch.as_tensor(tokens).long()).logits

    np.testing.assert_allclose(tiny.call(model, tokens)[0], want, atol=TOLERANCE)


def test_ten_steps_write_the_same_slots_with_the_same_values(pair):
    model, torch_model = pair
    memory = model.config.memory
    shape = (memory.num_tables, memory.table_rows)
    frequency = np.random.default_rng(1).integers(0, DOCUMENTS + 1, shape, np.int32)
    if memory.num_rows is not None:
        frequency[:, memory.num_rows :] = DOCUMENTS  # rows that must stay zeros
    optim = OptimConfig(method="smf", optimizer="sgd", learning_rate=RATE, top_t=TOP_T)
    method = make_method(optim, STEPS)
    graph, state, frozen = init_state(model, method)
    step = make_step(graph, memory, method, 1)
    background = Background(jnp.asarray(frequency), jnp.asarray(DOCUMENTS))
    optimizer = torch_baseline.train_only_values(torch_model, RATE)
    count = make_read_counter(graph, memory)

    for number in range(STEPS):
        batch = make_batch(seed=number)
        before = tables_of(state)
        counts = count((state.trainable, frozen), batch)
        scores = jax.vmap(select.tfidf, (0, 0, None))(counts, *background[:2])
        selected = [set(np.asarray(select.top_slots(row, TOP_T))) for row in scores]
        state, metrics = step(state, frozen, background, batch)
        after = tables_of(state)
        loss, torch_slots = torch_baseline.smf_step(
            torch_model, optimizer, batch, torch.as_tensor(frequency), DOCUMENTS, TOP_T
        )

        np.testing.assert_allclose(metrics["loss"], loss, atol=TOLERANCE)
        assert metrics["slots_written"] == sum(map(len, torch_slots))
        torch_tables = torch_model.model.memory_values
        tables = zip(before, after, selected, torch_slots, torch_tables, strict=True)
        for old, new, slots, torch_slots_of_table, torch_table in tables:
            slots = {slot for slot in slots if slot < memory.table_rows}
            assert set(torch_slots_of_table.tolist()) == slots
            # The gradient of a selected row may be 0, so that it does not move.
            moved = tiny.moved_rows(old, new)
            assert moved <= slots
            assert len(moved) > 0
            got = torch_table.detach().numpy()
            np.testing.assert_allclose(new, got, atol=TOLERANCE)


def tables_of(state):
    return [np.array(table) for table in jax.tree.leaves(state.trainable)]


@pytest.mark.parametrize("seed", range(5))
def test_the_same_slots_are_selected_also_among_equals(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, 50, np.int32)  # few values: many ties at the cut
    frequency = rng.integers(0, 3, 50, np.int32)

    scores = select.tfidf(jnp.asarray(counts), jnp.asarray(frequency), 5)
    want = np.asarray(select.top_slots(scores, 12))
    torch_scores = torch_baseline.tfidf(
        torch.as_tensor(counts), torch.as_tensor(frequency), 5
    )
    got = torch_baseline.top_slots(torch_scores, 12)

    np.testing.assert_allclose(scores, torch_scores, atol=1e-7)
    assert set(got.tolist()) == set(want[want < 50].tolist())


def test_all_parameters_but_the_tables_are_frozen(pair):
    _, torch_model = pair
    before = {
        name: param.detach().clone() for name, param in torch_model.named_parameters()
    }
    memory = torch_baseline.memory_layers(torch_model)[0].config
    frequency = torch.zeros((memory.num_tables, memory.table_rows), dtype=torch.int32)

    optimizer = torch_baseline.train_only_values(torch_model, RATE)
    torch_baseline.smf_step(
        torch_model, optimizer, make_batch(), frequency, DOCUMENTS, TOP_T
    )

    for name, param in torch_model.named_parameters():
        assert torch.equal(param, before[name]) != ("memory_values" in name), name


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


def test_memory_layers_added_to_a_decoder_change_nothing_at_first(plain):
    tokens = torch.as_tensor(make_batch().tokens).long()
    memory = memory_config(placement="add", layers=(0, 1), relevance_gate=True)
    with torch.no_grad():
        want = plain(input_ids=tokens).logits
        got = torch_baseline.add_memory(plain, memory)(input_ids=tokens).logits

    assert torch.equal(got, want)
    with pytest.raises(NotImplementedError, match="without its memory"):
        plain.save_pretrained("nowhere")


def test_added_memory_layers_are_initialised_as_ours(plain):
    memory = memory_config(num_keys=64, value_dim=128, key_dim=16, relevance_gate=True)
    params = tiny.named(build.make_model(model_config(memory=memory), seed=0))

    torch_model = torch_baseline.add_memory(plain, memory)

    (layer,) = torch_baseline.memory_layers(torch_model)
    pairs = {
        "values/0": torch_model.model.memory_values[0],
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
            float(params[name].std()), rel=0.15
        )
