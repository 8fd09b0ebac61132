"""Cases that are training steps or decoding, and the memory that they need."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from smf_jax.bench.config import BenchConfig
from smf_jax.bench.timing import Case
from smf_jax.config import (
    LoraConfig,
    MemoryConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
)
from smf_jax.data.batches import Batch
from smf_jax.model.build import abstract_model, assemble, inference_parts
from smf_jax.model.generate import generate
from smf_jax.model.lora import add_lora
from smf_jax.model.transformer import Transformer
from smf_jax.optim.methods import make_method
from smf_jax.sharding import MeshLayout, make_layout
from smf_jax.slots.document_frequency import Background
from smf_jax.train.prefix_cache import with_prefixes
from smf_jax.train.state import init_state
from smf_jax.train.step import make_step
from smf_jax.tree import named

DOCUMENTS, STEPS, LORA_RANK = 1000, 1000, 8
PARAM_SCALE = 0.02
# The same optimizer for all methods, so that only the methods differ.
SGD = {"optimizer": "sgd", "learning_rate": 1e-3}


def device_layout(config: BenchConfig) -> MeshLayout:
    """Returns the layout of one device.

    Raises:
      ConfigError: `compute.lookup` does not support it.
    """
    return make_layout(MeshConfig(data=1), config.compute, None)


def draw_batch(config: BenchConfig) -> Batch:
    """Returns texts of random tokens without padding."""
    shape = (config.texts, config.seq_len)
    tokens = np.random.default_rng(0).integers(
        0, config.model.vocab_size, (config.texts, config.seq_len + 1), np.int32
    )
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=np.ones(shape, np.float32),
        positions=np.broadcast_to(np.arange(config.seq_len, dtype=np.int32), shape),
        segments=np.ones(shape, np.int32),
        records=np.zeros(shape, np.int32),
    )


def draw_frequency(memory: MemoryConfig) -> np.ndarray:
    """Returns a random document frequency of each slot."""
    shape = (memory.num_tables, memory.num_slots)
    return np.random.default_rng(1).integers(0, DOCUMENTS, shape, np.int32)


def with_memory(model: ModelConfig, **changes: int) -> ModelConfig:
    """Returns a model with other settings of its memory layers."""
    memory = dataclasses.replace(model.memory, **changes)
    return dataclasses.replace(model, memory=memory)


def fill_model(config: BenchConfig, model: ModelConfig) -> Transformer:
    """Returns a model of random parameters with constant tables.

    Speed does not depend on the numbers of a table, and drawing random ones takes four
    times its memory on CPU.
    """
    abstract = abstract_model(model, device_layout(config))
    rngs = nnx.Rngs(0)

    def fill(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if name.startswith("values"):
            return jnp.full(leaf.shape, PARAM_SCALE, leaf.dtype)
        return PARAM_SCALE * jax.random.normal(rngs(), leaf.shape, leaf.dtype)

    shapes = named(nnx.as_pure(nnx.state(abstract)))
    return assemble(abstract, {name: fill(name, leaf) for name, leaf in shapes.items()})


def step_case(
    config: BenchConfig, model: ModelConfig, method: str, cached: bool = False
) -> Case:
    """Returns a finetuning step.

    Its sizes are the peak memory and that of the arguments, in bytes on a device, and
    the number of parameters that a step may change.

    Args:
      config: Sizes of the batch.
      model: The model.
      method: smf, lora or full.
      cached: Whether prefixes are cached, as for texts that repeat
        (`smf_jax.train.prefix_cache`).
    """
    filled = fill_model(config, model)
    if method == "lora":
        add_lora(filled, LoraConfig(rank=LORA_RANK), rngs=nnx.Rngs(0))
    top_t = min(config.top_t, model.memory.num_slots)
    rule = make_method(OptimConfig(method=method, top_t=top_t, **SGD), STEPS)
    graph, state, frozen = init_state(filled, rule)
    background, parts = None, 1
    if method == "smf":
        parts = config.grad_accum_steps
        frequency = jnp.asarray(draw_frequency(model.memory))
        background = Background(frequency, jnp.asarray(DOCUMENTS))
    batch = draw_batch(config)
    if cached:
        params = (state.trainable, frozen)
        (batch,) = with_prefixes([batch], graph, params, 1, Console(quiet=True))
    step = make_step(graph, model.memory, rule, parts, layout=filled.layout)
    case = _step_case(step, state, frozen, background, batch)
    if method == "smf":
        case.sizes["trainable"] = top_t * model.memory.value_dim
    return case


def pretraining_case(config: BenchConfig, model: ModelConfig) -> Case:
    """Returns a pretraining step by AdamW, with the balance loss if it has memory."""
    rule = make_method(OptimConfig(), STEPS, PretrainConfig.values_lr_scale)
    filled = fill_model(config, model)
    graph, state, frozen = init_state(filled, rule)
    weight = PretrainConfig.balance_weight
    step = make_step(graph, model.memory, rule, 1, weight, layout=filled.layout)
    return _step_case(step, state, frozen, None, draw_batch(config))


def _step_case(step, state, frozen, background, batch) -> Case:
    batch = jax.tree.map(jnp.asarray, batch)
    compiled = step.lower(state, frozen, background, batch).compile()
    sizes = {
        "peak": _peak(compiled),
        "arguments": compiled.memory_analysis().argument_size_in_bytes,
        "trainable": sum(leaf.size for leaf in jax.tree.leaves(state.trainable)),
    }

    def call():
        nonlocal state
        state, metrics = compiled(state, frozen, background, batch)
        return metrics

    return Case(call, batch.tokens.size, sizes)


def forward_peak(config: BenchConfig) -> int:
    """Returns the peak memory of a forward pass with its logits, in bytes."""
    graph, params = nnx.split(fill_model(config, config.model))
    batch = draw_batch(config)

    def logits(params, batch):
        model = nnx.merge(graph, params)
        return model(batch.tokens, batch.positions, batch.segments)[0]

    return _peak(jax.jit(logits).lower(params, batch).compile())


def _peak(compiled: jax.stages.Compiled) -> int:
    # The compiler's own peak lacks temporaries on CPU.
    memory = compiled.memory_analysis()
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
    return arguments + outputs - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def decoding_case(config: BenchConfig, new_tokens: int) -> Case:
    """Returns the case that extends each text by `new_tokens`."""
    model, prompts = fill_model(config, config.model), draw_batch(config).tokens
    return generation_case(model, prompts, new_tokens, config.texts * new_tokens)


def generation_case(
    model: Transformer, prompts: np.ndarray, new_tokens: int, amount: int
) -> Case:
    """Returns the case that extends prompts greedily; no token ends an answer."""
    graph, params = inference_parts(model)
    no_end = jnp.zeros(model.config.vocab_size, bool)

    @jax.jit
    def extend(params, prompts):
        model, is_prompt = nnx.merge(graph, params), jnp.ones(prompts.shape, bool)
        return generate(model, prompts, is_prompt, new_tokens, no_end)

    return Case(functools.partial(extend, params, jnp.asarray(prompts)), amount)
