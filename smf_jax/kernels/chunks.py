"""Splits arrays into chunks, to bound the size of what is computed at once."""

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def in_chunks(
    array: Shaped[Array, "n ..."], size: int
) -> Shaped[Array, "chunks size ..."]:
    """Splits the first axis into chunks, zero-padding the last.

    Chunks are no longer than the array.
    """
    size = max(1, min(size, len(array)))
    padding = -len(array) % size
    padded = jnp.pad(array, ((0, padding), *[(0, 0)] * (array.ndim - 1)))
    return padded.reshape(len(padded) // size, size, *array.shape[1:])


def tokens_in_chunks(
    size: int, *arrays: Shaped[Array, "*_ _"]
) -> list[Shaped[Array, "chunks size _"]]:
    """Returns arrays [*batch, width] with their tokens flattened and in chunks."""
    return [in_chunks(leaf.reshape(-1, leaf.shape[-1]), size) for leaf in arrays]
