"""Arrays in blocks, so that what is computed of each stays small."""

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def in_chunks(
    array: Shaped[Array, "n ..."], size: int
) -> Shaped[Array, "blocks size ..."]:
    """Cuts the first axis into blocks, the last filled up with zeros.

    A block is no longer than the array.
    """
    size = max(1, min(size, len(array)))
    lacking = -len(array) % size
    filled = jnp.pad(array, ((0, lacking), *[(0, 0)] * (array.ndim - 1)))
    return filled.reshape(len(filled) // size, size, *array.shape[1:])
