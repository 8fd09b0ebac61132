"""The linear map that every layer is made of."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


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
        # The gradient of a bias is a sum over all tokens.
        preferred_element_type=jnp.float32 if use_bias else None,
        rngs=rngs,
    )
