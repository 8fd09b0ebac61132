"""What the Triton kernels for GPU share."""

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

# A tile of 16 x 512 numbers is 64 registers of each of 128 threads, and 16 loads of 16
# bytes under way in each, which leaves room for several programs a multiprocessor.
READS_AT_ONCE = 16
COLUMNS = 512


def tile(reads: int, width: int) -> tuple[int, int]:
    """Returns the reads and the columns of a tile, which Triton has in powers of 2."""
    return (
        min(READS_AT_ONCE, pl.next_power_of_2(reads)),
        min(COLUMNS, pl.next_power_of_2(width)),
    )


def load(ref, at, there):
    """Returns what is at some places, in float32 but for ids; 0 where nothing is."""
    found = plgpu.load(ref.at[at], mask=there, other=0)
    is_number = jnp.issubdtype(ref.dtype, jnp.floating)
    return found.astype(jnp.float32) if is_number else found


def call(kernel, grid, out_shape, interpret):
    """Returns a kernel that is compiled for GPU, or interpreted."""
    params = plgpu.CompilerParams(num_warps=4)
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=out_shape,
        compiler_params=params,
        interpret=interpret,
    )
