"""The same cases in PyTorch, on the same device; needs the extra `torch`."""

from typing import Any

import jax
import torch
import torch.nn.functional as F
import transformers

from smf_jax import torch_baseline
from smf_jax.bench.config import BenchConfig
from smf_jax.bench.lookup import Inputs, draw_keys
from smf_jax.bench.steps import DOCUMENTS, SGD, draw_batch, draw_frequency
from smf_jax.bench.timing import Case
from smf_jax.config import ModelConfig


def supports_device() -> bool:
    """Returns whether PyTorch computes on JAX's device."""
    platform = jax.default_backend()
    return platform == "cpu" or (platform == "gpu" and torch.cuda.is_available())


def versions() -> dict[str, Any]:
    """Returns the version of PyTorch and its number of threads."""
    return {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}


def _device() -> torch.device:
    return torch.device("cpu" if jax.default_backend() == "cpu" else "cuda")


def _case(function, amount: int | None = None) -> Case:
    """Returns a case whose call waits for the device."""

    def call():
        function()
        if _device().type == "cuda":
            torch.cuda.synchronize()

    return Case(call, amount)


def lookup_cases(inputs: Inputs) -> dict[str, Case]:
    """Returns the cases of a lookup."""
    device, dtype = _device(), getattr(torch, inputs.dtype)
    values, weights, cotangent = (
        torch.as_tensor(array, dtype=dtype, device=device)
        for array in (inputs.values, inputs.weights, inputs.cotangent)
    )
    table = values.clone().requires_grad_()
    slots = torch.as_tensor(inputs.slots, dtype=torch.int64, device=device)

    def sum_rows(values, sparse=False):
        return F.embedding_bag(
            slots, values, per_sample_weights=weights, mode="sum", sparse=sparse
        )

    def backward(sparse):
        table.grad = None
        sum_rows(table, sparse).backward(cotangent)

    read, written = inputs.read_bytes, inputs.gradient_bytes
    return {
        "row sums, PyTorch": _case(lambda: sum_rows(values), read),
        "sums + dense gradient, PyTorch": _case(
            lambda: backward(False), read + written
        ),
        "sums + sparse gradient, PyTorch": _case(lambda: backward(True)),
    }


def ranking_case(config: BenchConfig) -> Case:
    """Returns the case that finds the best slots of each token."""
    query, keys = (
        torch.as_tensor(array, device=_device()) for array in draw_keys(config)
    )
    top_k = config.model.memory.top_k

    @torch.no_grad()
    def rank():
        torch_baseline.product_key_top_k(query, keys, top_k)

    return _case(rank, config.tokens)


def make_model(model: ModelConfig) -> torch.nn.Module:
    """Returns a decoder of the same shape, with memory layers."""
    config = transformers.LlamaConfig(
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
        decoder = transformers.AutoModelForCausalLM.from_config(config)
        return torch_baseline.add_memory(decoder, model.memory)


def step_case(config: BenchConfig, model: ModelConfig, sparse: bool) -> Case:
    """Returns a step of SMF whose gradient is sparse, or dense and masked."""
    decoder, device = make_model(model), _device()
    optimizer = torch_baseline.train_only_values(decoder, SGD["learning_rate"], sparse)
    frequency = torch.as_tensor(draw_frequency(model.memory), device=device)
    batch, top_t = draw_batch(config), min(config.top_t, model.memory.num_slots)
    dtype = getattr(torch, config.compute.activations)

    def step():
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            torch_baseline.smf_step(
                decoder, optimizer, batch, frequency, DOCUMENTS, top_t
            )

    return _case(step, config.tokens)
