"""The same cases in PyTorch, on the same device; needs the extra `torch`."""

from pathlib import Path
from typing import Any

import jax
import peft
import torch
import torch.nn.functional as F
import transformers

from smf_jax import hf, torch_baseline
from smf_jax.bench.config import BenchConfig
from smf_jax.bench.lookup import Inputs, draw_keys
from smf_jax.bench.pretrained import Work
from smf_jax.bench.steps import DOCUMENTS, LORA_RANK, SGD, draw_batch, draw_frequency
from smf_jax.bench.timing import Case
from smf_jax.config import ModelConfig

# The linear layers that `LoraConfig.targets` matches.
LORA_TARGETS = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()


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
    """Returns a decoder of the same shape, with memory layers if there are any."""
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
        if model.memory is None:
            return decoder
        return torch_baseline.add_memory(decoder, model.memory)


def load(source: str, dtype: str) -> torch.nn.Module:
    """Returns a pretrained model in a dtype."""
    path = Path(source)
    options = {"dtype": getattr(torch, dtype)}
    if path.suffix == hf.GGUF:
        path, options["gguf_file"] = path.parent, path.name
    model = transformers.AutoModelForCausalLM.from_pretrained(path, **options)
    return model.to(_device()).eval()


def pretrained_case(model: torch.nn.Module, work: Work) -> Case:
    """Returns the case that answers the prompts greedily; no token ends an answer."""
    tokens = torch.as_tensor(work.draw(model.config.vocab_size), dtype=torch.int64)
    tokens = tokens.to(_device())
    lengths = {"max_new_tokens": work.new_tokens, "min_new_tokens": work.new_tokens}

    @torch.inference_mode()
    def extend():
        model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, **lengths
        )

    return _case(extend, work.amount)


def dense_step_case(
    config: BenchConfig, model: ModelConfig, method: str, autocast: bool
) -> Case:
    """Returns a step of pretraining, full or lora.

    With `autocast`, products of matrices are of bfloat16.
    """
    decoder, device = make_model(model), _device()
    if method == "lora":
        adapters = peft.LoraConfig(r=LORA_RANK, target_modules=LORA_TARGETS)
        decoder = peft.inject_adapter_in_model(adapters, decoder)  # the rest is frozen
    trainable = [leaf for leaf in decoder.parameters() if leaf.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=SGD["learning_rate"])
    if method == "pretraining":
        optimizer = torch.optim.AdamW(trainable, lr=SGD["learning_rate"])
    batch = draw_batch(config)
    tokens, targets = (
        torch.as_tensor(part, dtype=torch.int64, device=device)
        for part in (batch.tokens, batch.targets)
    )

    def step():
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logits = decoder(input_ids=tokens).logits
        F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()).backward()
        optimizer.step()

    return _case(step, config.tokens)


def step_case(
    config: BenchConfig, model: ModelConfig, sparse: bool, autocast: bool = False
) -> Case:
    """Returns a step of SMF whose gradient is sparse, or dense and masked.

    With `autocast`, or activations of bfloat16, products of matrices are of bfloat16.
    """
    decoder, device = make_model(model), _device()
    optimizer = torch_baseline.train_only_values(decoder, SGD["learning_rate"], sparse)
    frequency = torch.as_tensor(draw_frequency(model.memory), device=device)
    batch, top_t = draw_batch(config), min(config.top_t, model.memory.num_slots)
    autocast = autocast or config.compute.activations == "bfloat16"

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            torch_baseline.smf_step(
                decoder, optimizer, batch, frequency, DOCUMENTS, top_t
            )

    return _case(step, config.tokens)
