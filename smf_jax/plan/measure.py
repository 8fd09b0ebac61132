"""What a compiled step needs on each device, and what it exchanges."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from smf_jax.plan.collectives import Collective, collectives


class Measured(NamedTuple):
    """A step that is compiled. Bytes are of one device."""

    arguments: int  # what goes in, as the compiler lays it out
    outputs: int  # what comes out
    alias: int  # of it, what takes the place of an argument
    temporary: int  # activations, gradients, work space
    peak: int  # the most that is held at once
    flops: float | None  # of one device and step; None: not told by this compiler
    accessed: float | None  # bytes that one step reads and writes; the same
    loops: bool  # whether it has loops, of which `flops` and `accessed` count one round
    collectives: list[Collective]

    @property
    def sent(self) -> int:
        """Bytes that a device sends in a step, at least: some loops are not counted."""
        return sum(each.sent * (each.times or 1) for each in self.collectives)


def measure(compiled: jax.stages.Compiled, mesh: Mapping[str, int]) -> Measured:
    """Returns what a compiled program needs; `mesh` as `collectives` takes it."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text = compiled.as_text()
    return Measured(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        alias=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        flops=cost.get("flops"),
        accessed=cost.get("bytes accessed"),
        loops=" while(" in text,
        collectives=collectives(text, mesh),
    )


def shard_bytes(tree: PyTree[jax.ShapeDtypeStruct]) -> int:
    """Returns the bytes that one device holds of arrays with their shardings.

    A compiler may need more for them: on TPU, the last two sides are padded to tiles.
    """

    def of_one(leaf: Any) -> int:
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(map(of_one, jax.tree.leaves(tree)))
