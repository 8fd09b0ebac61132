"""The linear map that every layer is made of."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def linear(
    inputs: int,
    outputs: int,
    dtype: DTypeLike,
    *,
    use_bias: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """Makes a map of vectors of norm about 1 to such vectors, computed in `dtype`."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        kernel_init=nnx.initializers.truncated_normal(inputs**-0.5),
        dtype=dtype,
        dot_general=_dot_general,
        # The gradient of a bias is a sum over all tokens.
        preferred_element_type=jnp.float32 if use_bias else None,
        rngs=rngs,
    )


def product(
    x: Float[Array, "*batch inputs"],
    kernel: Float[Array, "inputs outputs"],
    **options: Any,
) -> Float[Array, "*batch outputs"]:
    """Returns `x @ kernel`, with the tokens in one row for it.

    The kernel's gradient is a sum over tokens. Over two axes of them, a compiler for
    CPUs first writes `x` transposed, which takes longer than the sum.

    Args:
      x: Vectors of the tokens.
      kernel: The map.
      **options: Those of `jax.lax.dot_general`.
    """
    flat = x.reshape(-1, x.shape[-1])
    out = jax.lax.dot_general(flat, kernel, (((1,), (0,)), ((), ())), **options)
    return out.reshape(*x.shape[:-1], kernel.shape[1])


def _dot_general(x, kernel, dimension_numbers, **options):
    del dimension_numbers  # always the last of one and the first of the other
    return product(x, kernel, **options)
