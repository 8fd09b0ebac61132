"""Works that are whole steps of training, and the memory that they take."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from smf_jax.bench.config import BenchConfig
from smf_jax.bench.timing import Work
from smf_jax.config import (
    LoraConfig,
    MemoryConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
)
from smf_jax.data.batches import Batch
from smf_jax.model.build import abstract_model, assemble
from smf_jax.model.generate import generate_greedily
from smf_jax.model.lora import add_lora
from smf_jax.model.transformer import Transformer
from smf_jax.optim.methods import make_method
from smf_jax.sharding import ONE_DEVICE, MeshLayout, make_layout
from smf_jax.slots.document_frequency import Background
from smf_jax.train.prefix_cache import with_prefixes
from smf_jax.train.state import init_state
from smf_jax.train.step import make_step
from smf_jax.tree import named

DOCUMENTS, STEPS = 1000, 1000
SCALE = 0.02  # of parameters
# All by SGD, so that a method's own work is compared and not an optimizer's.
SGD = {"optimizer": "sgd", "learning_rate": 1e-3}


class Stepping(NamedTuple):
    """A step that can be taken again and again."""

    work: Work
    peak: int  # bytes a device holds at most
    held: int  # of it, what the step is given
    trainable: int  # numbers that it may change


def place(config: BenchConfig) -> MeshLayout:
    """Returns one device, and how it computes.

    Raises:
      ConfigError: There are no kernels for it.
    """
    return make_layout(MeshConfig(data=1), config.compute, None)


def draw_batch(config: BenchConfig) -> Batch:
    """Returns texts of random tokens, none of them padding."""
    shape = (config.texts, config.seq_len)
    tokens = np.random.default_rng(0).integers(
        0, config.model.vocab_size, (shape[0], shape[1] + 1), np.int32
    )
    places = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=np.ones(shape, np.float32),
        positions=places,
        segments=np.ones(shape, np.int32),
        records=np.zeros(shape, np.int32),
    )


def draw_frequency(memory: MemoryConfig) -> np.ndarray:
    """Returns a document frequency of each slot."""
    shape = (memory.num_tables, memory.num_slots)
    return np.random.default_rng(1).integers(0, DOCUMENTS, shape, np.int32)


def with_memory(model: ModelConfig, **changes: int) -> ModelConfig:
    """Returns a model with another memory."""
    return dataclasses.replace(
        model, memory=dataclasses.replace(model.memory, **changes)
    )


def dense_part(model: ModelConfig) -> ModelConfig:
    """Returns a model whose memory reads one row a token: the rest is what costs."""
    return with_memory(model, num_keys=32, num_heads=1, top_k=1)


def fill_model(config: ModelConfig, layout: MeshLayout = ONE_DEVICE) -> Transformer:
    """Returns a model of random parameters, all rows of its tables alike.

    How long a row takes does not depend on its numbers, and to draw a table takes four
    times its memory on a CPU.
    """
    abstract = abstract_model(config, layout)
    rngs = nnx.Rngs(0)

    def fill(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if name.startswith("values"):
            return jnp.full(leaf.shape, SCALE, leaf.dtype)
        return SCALE * jax.random.normal(rngs(), leaf.shape, leaf.dtype)

    shapes = named(nnx.as_pure(nnx.state(abstract)))
    return assemble(abstract, {name: fill(name, leaf) for name, leaf in shapes.items()})


def stepping(
    config: BenchConfig, model: ModelConfig, method: str, known: bool = False
) -> Stepping:
    """Returns a step of a method: smf, lora or full.

    Args:
      config: Sizes of the batch.
      model: What it trains.
      method: Its name.
      known: Whether what lies below the memory is known, as it is of texts that come
        again (`smf_jax.train.prefix_cache`).
    """
    layout = place(config)
    made = fill_model(model, layout)
    if method == "lora":
        add_lora(made, LoraConfig(rank=config.rank), rngs=nnx.Rngs(0))
    top_t = min(config.top_t, model.memory.num_slots)
    rule = make_method(OptimConfig(method=method, top_t=top_t, **SGD), STEPS)
    graph, state, frozen = init_state(made, rule)
    background, parts = None, 1
    if method == "smf":
        parts = config.grad_accum_steps
        frequency = jnp.asarray(draw_frequency(model.memory))
        background = Background(frequency, jnp.asarray(DOCUMENTS))
    batch = draw_batch(config)
    if known:
        params = (state.trainable, frozen)
        (batch,) = with_prefixes([batch], graph, params, 1, Console(quiet=True))
    step = make_step(graph, model.memory, rule, parts, layout=layout)
    stepping = _stepping(step, state, frozen, background, batch)
    if method == "smf":  # of the table the chosen rows
        stepping = stepping._replace(trainable=top_t * model.memory.value_dim)
    return stepping


def pretraining(config: BenchConfig, model: ModelConfig) -> Stepping:
    """Returns a pretraining step by AdamW, with the balance loss."""
    settings = PretrainConfig(run_dir="", steps=STEPS, model=model)
    rule = make_method(OptimConfig(), STEPS, settings.values_lr_scale)
    layout = place(config)
    graph, state, frozen = init_state(fill_model(model, layout), rule)
    balance_weight = settings.balance_weight if model.memory is not None else 0.0
    step = make_step(graph, model.memory, rule, 1, balance_weight, layout=layout)
    return _stepping(step, state, frozen, None, draw_batch(config))


def _stepping(step, state, frozen, background, batch) -> Stepping:
    batch = jax.tree.map(jnp.asarray, batch)
    compiled = step.lower(state, frozen, background, batch).compile()
    trainable = sum(leaf.size for leaf in jax.tree.leaves(state.trainable))

    def work():
        nonlocal state
        state, metrics = compiled(state, frozen, background, batch)
        return metrics

    held = compiled.memory_analysis().argument_size_in_bytes
    return Stepping(work, _peak(compiled), held, trainable)


def forward_peak(config: BenchConfig) -> int:
    """Returns the bytes that a forward pass holds at most, its logits included."""
    model = fill_model(config.model, place(config))
    graph, params = nnx.split(model)
    batch = draw_batch(config)

    def logits(params, batch):
        model = nnx.merge(graph, params)
        return model(batch.tokens, batch.positions, batch.segments)[0]

    compiled = jax.jit(logits).lower(params, batch).compile()
    return _peak(compiled)


def _peak(compiled: jax.stages.Compiled) -> int:
    # On a CPU, the peak that the compiler tells is without temporaries.
    memory = compiled.memory_analysis()
    given, made = memory.argument_size_in_bytes, memory.output_size_in_bytes
    return given + made - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def decoding(config: BenchConfig, new: int) -> dict[str, Work]:
    """Returns the work of continuing each text by so many tokens."""
    model = fill_model(config.model, place(config))
    graph, params = nnx.split(model)
    tokens = jnp.asarray(draw_batch(config).tokens)
    no_end = config.model.vocab_size  # an id that never comes

    @jax.jit
    def generate(params, tokens):
        is_prompt = jnp.ones(tokens.shape, bool)
        return generate_greedily(
            nnx.merge(graph, params), tokens, is_prompt, new, no_end
        )

    return {"tokens decoded, smf_jax": functools.partial(generate, params, tokens)}
