"""Computes the queries and keys of a calibrated memory from text, without training.

1. Mean and covariance of the feed-forward's normed input; its leading components,
   scaled to variance 1, are rotated at random for each head.
2. Spherical k-means on each half of the queries of a head gives its keys: where the
   inputs are many the keys are many, so that slots are read evenly.
3. `gain` is the mean length of what the feed-forward adds to the stream.

The first token of each text is left out: it is an attention sink, whose state is a
hundred times longer than others and alike in all texts.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from smf_jax import multihost
from smf_jax.config import require
from smf_jax.data.batches import Batch
from smf_jax.kernels.chunks import in_chunks
from smf_jax.model.calibrated import EXACT, CalibratedMemory, unit
from smf_jax.model.transformer import Transformer

ITERATIONS = 4  # of k-means; more make reads hardly more even
TOKENS_PER_CHUNK = 1024
MIN_VARIANCE = 1e-6  # of a component, as a share of the largest


class States(NamedTuple):
    """Inputs of a feed-forward, and which of them count."""

    inputs: Float[Array, "tokens dim"]
    counts: Bool[Array, " tokens"]


class _Moments(NamedTuple):
    count: Array
    total: Array  # [dim]
    products: Array  # [dim, dim]
    added: Array  # summed length of what the feed-forward adds


def calibrate(
    model: Transformer, batches: Sequence[Batch], seed: int
) -> list[Int[np.ndarray, "tokens reads"]]:
    """Sets queries, keys and gain of a model's calibrated memory, in place.

    Returns the slots that the tokens of each batch read then. The result depends on the
    seed, the model and the batches, up to rounding by the mesh.

    Raises:
      ConfigError: There are fewer tokens than keys.
    """
    graph, params = nnx.split(model)
    layout, memory = model.layout, model.blocks[model.config.memory.layers[0]].memory
    of_batches, moments = [], None
    for batch in batches:
        multihost.busy("calibrating the memory")
        states, more = _inputs(graph, params, layout.shard_batch(batch))
        more = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), more)
        moments = more if moments is None else jax.tree.map(np.add, moments, more)
        of_batches.append(states)
    states = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *of_batches)
    counted = np.flatnonzero(np.asarray(layout.constrain(states.counts)))
    keys = model.config.memory.num_keys
    require(
        len(counted) >= keys,
        f"{len(counted):,} background tokens are fewer than the {keys:,} keys to make "
        "(memory.num_keys): give more text",
    )
    generator = np.random.default_rng(seed)
    mean = moments.total / moments.count
    projection = _projection(moments, model.config.memory, generator)
    memory.mean[...] = _put(layout, mean)
    memory.projection[...] = _put(layout, projection)
    memory.gain[...] = _put(layout, np.asarray(moments.added / moments.count))
    memory.keys[...] = _k_means(memory, states, counted, generator)
    graph, params = nnx.split(memory)
    reads = (_read(graph, params, states.inputs) for states in of_batches)
    return [
        np.asarray(of_batch)[: batch.segments.size][batch.segments.ravel() > 0]
        for of_batch, batch in zip(reads, batches, strict=True)
    ]


def _put(layout, array: np.ndarray) -> Array:
    return layout.device_put(np.asarray(array, np.float32))


@functools.partial(jax.jit, static_argnames="graph")
def _inputs(graph: nnx.GraphDef, params: PyTree, batch: Batch):
    """Returns the states of a batch, and their moments."""
    model = nnx.merge(graph, params)
    text = (batch.tokens, batch.positions, batch.segments)
    block, hidden, _ = model.memory_input(*text)
    added = jnp.linalg.norm(block.feed_forward(hidden).astype(jnp.float32), axis=-1)
    counts = ((batch.segments > 0) & (batch.positions > 0)).reshape(-1)
    inputs = hidden.astype(jnp.float32).reshape(len(counts), -1)
    kept = jnp.where(counts[:, None], inputs, 0)
    products = jnp.einsum("td,te->de", kept, kept, precision=EXACT)
    sums = (counts.sum(), kept.sum(0), products, (added.reshape(-1) * counts).sum())
    moments = jax.tree.map(model.layout.constrain, _Moments(*sums))
    return States(inputs, counts), moments


def _projection(moments: _Moments, config, generator) -> np.ndarray:
    """Returns the whitened and rotated components of each head, side by side."""
    mean = moments.total / moments.count
    covariance = moments.products / moments.count - np.outer(mean, mean)
    variances, axes = np.linalg.eigh(covariance)  # in rising order
    least = MIN_VARIANCE * variances[-1]
    whiten = (axes / np.sqrt(np.maximum(variances, least)))[:, ::-1]
    width = config.key_dim
    rotations = [
        np.linalg.qr(generator.standard_normal((width, width)))[0]
        for _ in range(config.num_heads)
    ]
    return np.concatenate([whiten[:, :width] @ of_head for of_head in rotations], 1)


def _k_means(
    memory: CalibratedMemory, states: States, counted: np.ndarray, generator
) -> Float[Array, "heads 2 num_keys half"]:
    """Returns spherical k-means of each half of each head's queries."""
    config = memory.config
    graph, params = nnx.split(memory)

    def draw() -> Array:
        """Returns as many random queries as there are keys, in their halves."""
        chosen = generator.choice(counted, config.num_keys, replace=False)
        return _queries_of(graph, params, states.inputs, chosen)

    keys = draw()
    for _ in range(ITERATIONS):
        sums, sizes = _assign(graph, params, states, keys)
        keys = jnp.where(sizes[..., None] > 0, unit(sums), draw())
    return keys


@functools.partial(jax.jit, static_argnames="graph")
def _read(graph, params, inputs) -> Array:
    memory = nnx.merge(graph, params)
    reads = memory.read_slots(inputs[:, None])  # tokens are what devices share
    return memory.layout.constrain(reads.slots[:, 0])


@functools.partial(jax.jit, static_argnames="graph")
def _queries_of(graph, params, inputs, chosen) -> Array:
    memory = nnx.merge(graph, params)
    queries = memory.queries(jnp.take(inputs, chosen, axis=0, mode="clip"))
    return memory.layout.constrain(jnp.moveaxis(queries, 0, 2))


@functools.partial(jax.jit, static_argnames="graph")
def _assign(graph, params, states: States, keys) -> tuple[Array, Array]:
    """Returns the sum of the queries nearest to each key, and how many they are."""
    memory = nnx.merge(graph, params)
    heads, pair, num_keys, _ = keys.shape
    of_head = jnp.arange(heads)[:, None, None], jnp.arange(pair)[:, None]

    def add(sums, chunk):
        inputs, counts = chunk
        queries = jnp.moveaxis(memory.queries(inputs), 0, 2)  # [heads, 2, tokens, half]
        scores = jnp.einsum("hptc,hpnc->hptn", queries, keys, precision=EXACT)
        nearest = jnp.where(counts, scores.argmax(-1), num_keys)
        index = (*of_head, nearest)
        total = sums[0].at[index].add(queries, mode="drop")
        return (total, sums[1].at[index].add(1, mode="drop")), None

    chunks = [in_chunks(leaf, TOKENS_PER_CHUNK) for leaf in states]
    zeros = jnp.zeros(keys.shape), jnp.zeros(keys.shape[:-1], jnp.int32)
    sums, _ = jax.lax.scan(add, zeros, chunks)
    return jax.tree.map(memory.layout.constrain, sums)
