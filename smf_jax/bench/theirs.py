"""The same works in PyTorch; needs the extra `torch`."""

import torch
import torch.nn.functional as F
import transformers

from smf_jax import torch_baseline
from smf_jax.bench.config import BenchConfig
from smf_jax.bench.lookup import Reading, draw_keys
from smf_jax.bench.steps import DOCUMENTS, SGD, draw_batch, draw_frequency
from smf_jax.bench.timing import Work
from smf_jax.config import ModelConfig


def lookup(reading: Reading) -> dict[str, Work]:
    """Returns the works of a lookup."""
    values, slots, weights, cotangent, _ = map(torch.as_tensor, reading)
    table = values.clone().requires_grad_()
    slots = slots.long()

    def forward():
        with torch.no_grad():
            F.embedding_bag(slots, values, per_sample_weights=weights, mode="sum")

    def backward(sparse):
        def work():
            table.grad = None
            summed = F.embedding_bag(
                slots, table, per_sample_weights=weights, mode="sum", sparse=sparse
            )
            summed.backward(cotangent)

        return work

    return {
        "rows summed, PyTorch": forward,
        "rows summed, gradient of the table, PyTorch": backward(False),
        "rows summed, sparse gradient, PyTorch": backward(True),
    }


def ranking(config: BenchConfig) -> dict[str, Work]:
    """Returns the work that finds each token's best slots."""
    query, keys = map(torch.as_tensor, draw_keys(config))
    top_k = config.model.memory.top_k

    def work():
        with torch.no_grad():
            torch_baseline.product_key_top_k(query, keys, top_k)

    return {"slots ranked, PyTorch": work}


def make_model(model: ModelConfig) -> torch.nn.Module:
    """Returns a decoder of the same shape, with memory layers."""
    decoder = transformers.LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.dim,
        intermediate_size=model.hidden_dim,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_width,
        tie_word_embeddings=model.tie_embeddings,
    )
    made = transformers.AutoModelForCausalLM.from_config(decoder)
    return torch_baseline.add_memory(made, model.memory)


def step(config: BenchConfig, model: ModelConfig, sparse: bool) -> Work:
    """Returns a step of SMF, its gradient dense and masked, or sparse."""
    made = make_model(model)
    optimizer = torch_baseline.train_only_values(made, SGD["learning_rate"], sparse)
    frequency = torch.as_tensor(draw_frequency(model.memory))
    batch, top_t = draw_batch(config), min(config.top_t, model.memory.num_slots)

    def work():
        torch_baseline.smf_step(made, optimizer, batch, frequency, DOCUMENTS, top_t)

    return work
