"""A memory layer whose queries and keys are statistics of a pretrained model.

Nothing in it is trained but the rows that facts are written to: `train/calibrate.py`
computes the rest.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from smf_jax.config import MemoryConfig
from smf_jax.kernels.product_key import product_key_top_k
from smf_jax.kernels.row_sums import weighted_rows
from smf_jax.model.memory import Reads, require_axes
from smf_jax.sharding import ONE_DEVICE, MeshLayout

EXACT = jax.lax.Precision.HIGHEST


class SlotIds(nnx.Variable):
    """The slots of a table's rows, rising; num_slots for rows that are not used."""


class CalibratedMemory(nnx.Module):
    """Adds a weighted sum of value rows, which are vectors of the residual stream.

    Queries are whitened inputs of the feed-forward, rotated at random for each head;
    both of their halves and all keys have length 1. Scores are divided by a temperature
    before the softmax, and heads are averaged. The sum of rows is multiplied by `gain`,
    what a feed-forward adds to the stream on average, so 1 is a natural length of a
    row. While the table is empty the layer adds exact zeros.

    With `num_rows` only those rows exist, and all other slots read as zeros.
    """

    def __init__(
        self,
        config: MemoryConfig,
        dim: int,
        layout: MeshLayout = ONE_DEVICE,
        *,
        rngs: nnx.Rngs,
    ):
        del rngs  # nothing is drawn
        self.config = config
        self.dim = dim
        self.layout = layout
        half = config.key_dim // 2
        self.mean = nnx.Param(jnp.zeros(dim))
        self.projection = nnx.Param(jnp.zeros((dim, config.num_heads * config.key_dim)))
        self.keys = nnx.Param(jnp.zeros((config.num_heads, 2, config.num_keys, half)))
        self.gain = nnx.Param(jnp.ones(()))
        if config.num_rows is not None:
            unused = jnp.full(config.table_rows, config.num_slots, jnp.int32)
            self.slots = SlotIds(unused)

    def queries(
        self, x: Float[Array, "*batch dim"]
    ) -> Float[Array, "*batch heads 2 half"]:
        """Returns the whitened and rotated input of each head, in halves of length 1.

        It is float32 throughout: other queries would read other slots.
        """
        mean = jnp.expand_dims(self.mean[...], range(x.ndim - 1))
        centred = x.astype(jnp.float32) - mean
        projected = jnp.einsum(
            "...d,dc->...c", centred, self.projection[...], precision=EXACT
        )
        halves = projected.reshape(*x.shape[:-1], self.config.num_heads, 2, -1)
        return unit(halves)

    def read_slots(self, x: Float[Array, "batch seq dim"]) -> Reads:
        """Returns the slots that each token reads, whether they have a row or not."""
        require_axes("x", x, "batch", "seq", self.dim)
        batch, seq, _ = x.shape
        config = self.config
        slots, scores = product_key_top_k(
            self.queries(x), self.keys[...], config.top_k, layout=self.layout
        )
        weights = jax.nn.softmax(scores / config.calibrated.temperature, axis=-1)
        weights = weights / config.num_heads
        return Reads(slots.reshape(batch, seq, -1), weights.reshape(batch, seq, -1))

    def rank(self, x: Float[Array, "batch seq dim"]) -> Reads:
        """Returns the rows that each token reads; slots without one read the last row.

        The last row is never used, and is zero.
        """
        reads = self.read_slots(x)
        if self.config.num_rows is None:
            return reads
        return reads._replace(slots=rows_of(self.slots[...], reads.slots))

    def __call__(
        self,
        x: Float[Array, "batch seq dim"],
        values: Float[Array, "table_rows dim"],
        perturbation: Float[Array, "batch seq dim"] | None = None,
        reads: Reads | None = None,
    ) -> tuple[Float[Array, "batch seq dim"], Reads]:
        """Returns what is added to the stream, and the rows that were read.

        Arguments are those of `MemoryLayer`.

        Raises:
          ValueError: The shape of `x` or `values` is not that of the layer.
        """
        require_axes("x", x, "batch", "seq", self.dim)
        require_axes("values", values, self.config.table_rows, self.dim)
        reads = self.rank(x) if reads is None else reads
        sums = weighted_rows(values, *reads, self.layout)
        if perturbation is not None:
            sums = sums + perturbation
        return (self.gain[...] * sums).astype(x.dtype), reads


def unit(x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Returns vectors of length 1; zeros stay zeros."""
    squares = (x**2).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, np.finfo(np.float32).tiny))


def rows_of(
    slots_of_rows: Int[Array, " rows"], slots: Int[Array, "..."]
) -> Int[Array, "..."]:
    """Returns the row of each slot, and the last row for a slot without one.

    >>> rows_of(jnp.array([3, 7, 9, 9]), jnp.array([7, 4, 3])).tolist()
    [1, 3, 0]
    """
    rows = jnp.searchsorted(slots_of_rows, slots).astype(slots.dtype)
    last = len(slots_of_rows) - 1
    found = slots_of_rows.at[rows].get(mode="clip") == slots
    return jnp.where(found, rows, last)
