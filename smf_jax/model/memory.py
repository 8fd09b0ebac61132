"""The product-key memory layer: each token reads a few rows of a large table."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from smf_jax.config import MemoryConfig
from smf_jax.kernels.product_key import product_key_top_k
from smf_jax.kernels.row_sums import weighted_rows
from smf_jax.model.linear import linear
from smf_jax.sharding import BATCH, ONE_DEVICE, MeshLayout


class MemoryValues(nnx.Param):
    """A table of value rows; sparse finetuning trains parameters of this type."""


class Reads(NamedTuple):
    """The slots that each token read, and the weights, which sum to 1 per head."""

    slots: Int[Array, "batch seq reads"]
    weights: Float[Array, "batch seq reads"]


def table_of(config: MemoryConfig, memory_layer: int) -> int:
    """Returns the table that a memory layer reads; both are counted from 0."""
    return 0 if config.share_values else memory_layer


def init_values(config: MemoryConfig, *, rngs: nnx.Rngs) -> MemoryValues:
    """Makes a table of rows of norm about 1, or of zeros for a calibrated memory."""
    shape = (config.table_rows, config.value_dim)
    if config.calibrated is not None:
        return MemoryValues(jnp.zeros(shape))
    init = nnx.initializers.normal(config.value_dim**-0.5)
    return MemoryValues(init(rngs.params(), shape))


class MemoryLayer(nnx.Module):
    """Reads a weighted sum of value rows per token, gated by the input.

    Source: Lample et al. 2019, arXiv:1907.05242 (product keys); Berges et al. 2024,
    arXiv:2412.09764 (the SiLU gate). The norm of the query is ours: without it few keys
    are used.
    """

    def __init__(
        self,
        config: MemoryConfig,
        dim: int,
        layout: MeshLayout = ONE_DEVICE,
        *,
        rngs: nnx.Rngs,
    ):
        make = functools.partial(linear, layout=layout, rngs=rngs)
        self.config = config
        self.dim = dim
        self.layout = layout
        half = config.key_dim // 2
        self.query = make(dim, config.num_heads * config.key_dim)
        shape = (config.num_heads, 2, config.num_keys, half)
        bound = config.key_dim**-0.5
        self.keys = nnx.Param(
            jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        )
        if config.query_norm:
            self.query_norm = nnx.RMSNorm(half, dtype=jnp.float32, rngs=rngs)
        if config.key_norm:
            self.key_norm = nnx.RMSNorm(half, dtype=jnp.float32, rngs=rngs)
        self.gate = make(dim, config.value_dim)
        self.out = make(config.value_dim, dim)
        if config.relevance_gate:
            zeros, dtype = nnx.initializers.zeros, layout.compute.activations
            self.relevance = nnx.Linear(
                dim, 1, kernel_init=zeros, dtype=dtype, rngs=rngs
            )

    def rank(self, x: Float[Array, "batch seq dim"]) -> Reads:
        """Returns the slots whose keys score highest for each token's query.

        Raises:
          ValueError: The shape of `x` is not that of the layer.
        """
        require_axes("x", x, "batch", "seq", self.dim)
        batch, seq, _ = x.shape
        query = self.query(x).reshape(batch, seq, self.config.num_heads, 2, -1)
        keys = self.keys[...]
        if self.config.query_norm:
            query = self.query_norm(query)
        if self.config.key_norm:
            keys = self.key_norm(keys)
        query, top_k = query.astype(jnp.float32), self.config.top_k
        slots, scores = product_key_top_k(query, keys, top_k, layout=self.layout)
        weights = jax.nn.softmax(scores, axis=-1)
        return Reads(slots.reshape(batch, seq, -1), weights.reshape(batch, seq, -1))

    def __call__(
        self,
        x: Float[Array, "batch seq dim"],
        values: Float[Array, "num_slots value_dim"],
        perturbation: Float[Array, "batch seq value_dim"] | None = None,
        reads: Reads | None = None,
    ) -> tuple[Float[Array, "batch seq dim"], Reads]:
        """Returns the layer's output and its reads.

        The table is an argument, because layers may share one. A perturbation is zeros
        added to the summed rows: from its gradient that of any row can be computed.
        `reads` are those of `rank`, if known.

        Raises:
          ValueError: The shape of `x` or `values` is not that of the layer.
        """
        require_axes("x", x, "batch", "seq", self.dim)
        config = self.config
        require_axes("values", values, config.num_slots, config.value_dim)
        reads = self.rank(x) if reads is None else reads
        sums = weighted_rows(values, *reads, self.layout)
        if perturbation is not None:
            sums = sums + perturbation
        out = self.out(sums.astype(x.dtype) * jax.nn.silu(self.gate(x)))
        if config.relevance_gate:
            out = out * jax.nn.sigmoid(self.relevance(x))
        return out, reads


def require_axes(name: str, array: Array, *axes: str | int) -> None:
    """Raises `ValueError` unless an array has these axes; a word is any size."""
    pairs = zip(axes, array.shape, strict=False)
    differ = any(not isinstance(axis, str) and axis != size for axis, size in pairs)
    if array.ndim != len(axes) or differ:
        raise ValueError(
            f"{name} has shape {list(array.shape)}, but this memory layer was made for "
            f"[{', '.join(map(str, axes))}]"
        )


def zero_perturbations(
    config: MemoryConfig, batch: int, seq: int
) -> tuple[Float[Array, "batch seq value_dim"], ...]:
    """Returns a perturbation of zeros for each memory layer."""
    return (jnp.zeros((batch, seq, config.value_dim)),) * len(config.layers)


def weights_on_slots(
    config: MemoryConfig,
    reads: tuple[Reads, ...],
    is_token: Bool[Array, "batch seq"],
    layout: MeshLayout = ONE_DEVICE,
) -> Float[Array, "tables table_rows"]:
    """Returns the sum of the weights of tokens on each row of each table."""

    def local(slots, weights):
        sums = jnp.zeros(config.table_rows).at[slots].add(weights, mode="drop")
        return layout.psum(sums, BATCH)

    tokens, replicated = PartitionSpec(BATCH), PartitionSpec()
    sum_weights = layout.shard_map(local, (tokens, tokens), replicated, check=True)
    sums = [jnp.zeros(config.table_rows)] * config.num_tables
    for layer, read in enumerate(reads):
        weights = read.weights * is_token[..., None]
        sums[table_of(config, layer)] += sum_weights(read.slots, weights)
    return jnp.stack(sums)


def balance_loss(weights: Float[Array, "tables num_slots"]) -> Float[Array, ""]:
    """Returns how unevenly the tables are read, in nats; 0 is perfectly even.

        log(num_slots * sum_i p[i]**2),    p[i] = share of the weights on slot i

    This is the Renyi divergence of order 2 of the reads from uniform ones, averaged
    over tables. It is log(num_slots) when all tokens read one slot.

    Source: after the balancing loss of Fedus et al. 2021, arXiv:2101.03961, whose
    experts are slots here; theirs is not squared, but multiplies two kinds of shares.
    """
    collisions = (weights**2).sum(axis=1) / weights.sum(axis=1) ** 2
    return jnp.log(weights.shape[1] * collisions).mean()
