"""The gradient of the rows that a batch reads, each on the device that holds it.

It is a smaller table, split over devices as the table itself is.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from smf_jax.kernels import sharded
from smf_jax.sharding import Placement

# Of a table and its moments. 1,024 x 128 floats are 512 KiB, and stay in a CPU's cache;
# an accelerator starts anew for each of these.
ROWS_AT_ONCE = {"cpu": 1024, "gpu": 2**14, "tpu": 2**14}


class ReadRows(NamedTuple):
    """Which rows were read, and their gradient; as much room on each device.

    A place past the rows that a device holds stands for none, and its gradient is 0.
    """

    places: Int[Array, " room"]  # rising, in the rows that a device holds
    gradient: Float[Array, "room value_dim"]


def rows_held(placement: Placement, num_slots: int) -> int:
    """Returns how many rows of a table each device holds."""
    return num_slots // placement.ways(*placement.row_axes)


def places_spec(placement: Placement) -> PartitionSpec:
    """Returns how `ReadRows.places` are split."""
    return PartitionSpec(placement.row_axes or None)


def read_rows_gradient(
    placement: Placement,
    cotangent: Float[Array, "*layers batch seq value_dim"],
    slots: Int[Array, "*layers batch seq reads"],
    weights: Float[Array, "*layers batch seq reads"],
    num_slots: int,
) -> ReadRows:
    """Returns what `rows.table_gradient` does, without the rows that nobody read.

    Sums are added in the same order. A slot of num_slots or more stands for none. There
    is room for as many rows as there are reads, or as a device holds; above
    `ROWS_AT_ONCE` it is a multiple of that.
    """
    held = rows_held(placement, num_slots)
    room = min(held, math.prod(slots.shape))
    room += -room % min(room, ROWS_AT_ONCE[placement.platform])

    def local(cotangent, slots, weights):
        cotangent, slots, weights = sharded.all_tokens(
            placement, cotangent, slots, weights
        )
        place, is_here = sharded.places(placement, held, slots)
        place = jnp.where(is_here, place, held)
        is_read = jnp.zeros(held, bool).at[place].set(True, mode="drop")
        row = jnp.where(is_read, jnp.cumsum(is_read) - 1, room)
        here = jnp.arange(held, dtype=place.dtype)
        none = held + jnp.arange(room, dtype=place.dtype)
        of_read = row.at[place].get(mode="fill", fill_value=room)
        table_gradient = sharded.kernels(placement).table_gradient
        return ReadRows(
            none.at[row].set(here, mode="drop"),
            table_gradient(cotangent, of_read, weights, room),
        )

    tokens = sharded.of_tokens(slots)
    specs = (sharded.of_tokens(cotangent, "model"), tokens, tokens)
    split = ReadRows(places_spec(placement), placement.table)
    return placement.on_shards(local, specs, split)(cotangent, slots, weights)
