"""What the Triton kernels for GPU share."""

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

WARPS = 4


def at_most(size: int, most: int) -> int:
    """Returns a size of a tile, which Triton has in powers of 2."""
    return min(most, pl.next_power_of_2(size))


def load(ref, at, there):
    """Returns what is at some places, in float32 but for ids; 0 where nothing is."""
    found = plgpu.load(ref.at[at], mask=there, other=0)
    is_number = jnp.issubdtype(ref.dtype, jnp.floating)
    return found.astype(jnp.float32) if is_number else found


def call(kernel, grid, out_shape, interpret):
    """Returns a kernel that is compiled for GPU, or interpreted."""
    params = plgpu.CompilerParams(num_warps=WARPS)
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=out_shape,
        compiler_params=params,
        interpret=interpret,
    )
