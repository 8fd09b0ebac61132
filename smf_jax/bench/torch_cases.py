"""The same works in PyTorch, on the same device; needs the extra `torch`."""

import jax
import torch
import torch.nn.functional as F
import transformers

from smf_jax import torch_baseline
from smf_jax.bench.config import BenchConfig
from smf_jax.bench.lookup import Moving, Reading, draw_keys
from smf_jax.bench.steps import DOCUMENTS, SGD, draw_batch, draw_frequency
from smf_jax.bench.timing import Work
from smf_jax.config import ModelConfig


def why_not() -> str | None:
    """Returns in words why PyTorch cannot compute where jax does, if so."""
    platform = jax.default_backend()
    if platform == "cpu" or (platform == "gpu" and torch.cuda.is_available()):
        return None
    return f"PyTorch has no {platform} here"


def _device() -> torch.device:
    return torch.device("cpu" if jax.default_backend() == "cpu" else "cuda")


def _waiting(function) -> Work:
    """Returns a work that returns when the device is done."""

    def work():
        function()
        if _device().type == "cuda":
            torch.cuda.synchronize()

    return work


def lookup(reading: Reading) -> dict[str, Moving]:
    """Returns the works of a lookup."""
    device, dtype = _device(), getattr(torch, reading.table)
    values, weights, cotangent = (
        torch.as_tensor(array, dtype=dtype, device=device)
        for array in (reading.values, reading.weights, reading.cotangent)
    )
    table = values.clone().requires_grad_()
    slots = torch.as_tensor(reading.slots, dtype=torch.int64, device=device)

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

        return _waiting(work)

    read, made = reading.bytes_read, reading.bytes_of_gradient
    dense, sparse = Moving(backward(False), read + made), Moving(backward(True), None)
    return {
        "rows summed, PyTorch": Moving(_waiting(forward), read),
        "rows summed, gradient of the table, PyTorch": dense,
        "rows summed, sparse gradient, PyTorch": sparse,
    }


def ranking(config: BenchConfig) -> dict[str, Work]:
    """Returns the work that finds each token's best slots."""
    query, keys = (
        torch.as_tensor(array, device=_device()) for array in draw_keys(config)
    )
    top_k = config.model.memory.top_k

    def work():
        with torch.no_grad():
            torch_baseline.product_key_top_k(query, keys, top_k)

    return {"slots ranked, PyTorch": _waiting(work)}


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
    with _device():
        made = transformers.AutoModelForCausalLM.from_config(decoder)
        return torch_baseline.add_memory(made, model.memory)


def step(config: BenchConfig, model: ModelConfig, sparse: bool) -> Work:
    """Returns a step of SMF, its gradient dense and masked, or sparse."""
    made, device = make_model(model), _device()
    optimizer = torch_baseline.train_only_values(made, SGD["learning_rate"], sparse)
    frequency = torch.as_tensor(draw_frequency(model.memory), device=device)
    batch, top_t = draw_batch(config), min(config.top_t, model.memory.num_slots)
    activations = getattr(torch, config.compute.activations)

    def work():
        with torch.autocast(
            device.type, activations, enabled=activations != torch.float32
        ):
            torch_baseline.smf_step(made, optimizer, batch, frequency, DOCUMENTS, top_t)

    return _waiting(work)
