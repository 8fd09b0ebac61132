"""What kernels for TPU share: tables whose rows can be copied, copies kept ahead."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Shaped

LANES, SUBLANES = 128, 8  # of a tile of 32-bit numbers
BYTES_PER_OUTPUT = 2**20  # of the 16 MB of VMEM that a kernel has, twice


def aligned(table: Shaped[Array, "rows width"]) -> Shaped[Array, "_ _"]:
    """Returns a table whose rows can be copied: the same one at usual sizes.

    Others get columns of zeros up to a multiple of 128, and one of bfloat16 rows of
    zeros up to a multiple of 2, which copies all of it.
    """
    packing = 4 // table.dtype.itemsize
    lacking = -table.shape[0] % packing, -table.shape[1] % LANES
    return jnp.pad(table, [(0, some) for some in lacking]) if any(lacking) else table


def in_sublanes(rows: int, most: int) -> int:
    """Returns how many of some rows a block has: whole tiles, or all of them."""
    return min(rows, max(most // SUBLANES, 1) * SUBLANES)


def keep_ahead(
    begin: Any,
    end: Any,
    ahead: int,
    start: Callable[[Any], None],
    finish: Callable[[Any], None],
) -> None:
    """Starts items, each `ahead` items before it is finished; in a kernel.

    Args:
      begin: The first item.
      end: After the last item.
      ahead: How many are started before the first is finished.
      start: Given an item, begins to copy what it needs.
      finish: Waits for that, and uses it.
    """

    def first(item, _):
        start(item)

    def then(item, _):
        finish(item)

        @pl.when(item + ahead < end)
        def _():
            start(item + ahead)

    jax.lax.fori_loop(begin, jnp.minimum(begin + ahead, end), first, None)
    jax.lax.fori_loop(begin, end, then, None)
