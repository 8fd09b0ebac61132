"""How often the slots of a memory's tables are read."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int, PyTree

from smf_jax.config import MemoryConfig
from smf_jax.data.batches import Batch
from smf_jax.model.memory import Reads, pool_of
from smf_jax.sharding import ONE_DEVICE, Placement
from smf_jax.slots.select import count_reads


def read_counts(
    reads: tuple[Reads, ...],
    is_token: Bool[Array, "*batch seq"],
    memory: MemoryConfig,
    placement: Placement = ONE_DEVICE,
) -> Int[Array, "pools num_slots"]:
    """Returns how often each slot of each table was read by tokens."""
    counts = [jnp.zeros(memory.num_slots, jnp.int32)] * memory.num_pools
    for layer, read in enumerate(reads):
        pool = pool_of(memory, layer)
        counts[pool] += count_reads(read.slots, is_token, memory.num_slots, placement)
    return jnp.stack(counts)


def make_read_counter(
    graph: nnx.GraphDef, memory: MemoryConfig, placement: Placement = ONE_DEVICE
) -> Callable[[tuple[PyTree, ...], Batch], Int[Array, "pools num_slots"]]:
    """Returns a compiled `(params, batch) -> how often each slot was read`.

    `params` are in the parts that `graph` was split into.
    """

    @jax.jit
    def count(params, batch):
        model = nnx.merge(graph, *params)
        _, reads = model(batch.tokens, batch.positions, batch.segments)
        counts = read_counts(reads, batch.segments > 0, memory, placement)
        return placement.constrain(counts)  # whole, as the host is to read them

    return count
