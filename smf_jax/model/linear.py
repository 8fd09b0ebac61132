"""The linear map and the norm that every layer is made of."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from smf_jax.config import ModelConfig


def linear(
    inputs: int,
    outputs: int,
    dtype: DTypeLike,
    *,
    use_bias: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """Makes a linear map, computed in `dtype`, that preserves norms of about 1."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        kernel_init=nnx.initializers.truncated_normal(inputs**-0.5),
        dtype=dtype,
        dot_general=product,
        # The gradient of a bias is a sum over all tokens.
        preferred_element_type=jnp.float32 if use_bias else None,
        rngs=rngs,
    )


def rms_norm(
    width: int, config: ModelConfig, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.RMSNorm:
    """Makes a norm of vectors of a width, with the epsilon of the model."""
    return nnx.RMSNorm(width, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)


def product(
    x: Float[Array, "*batch inputs"],
    kernel: Float[Array, "inputs outputs"],
    dimension_numbers: Any = None,
    **options: Any,
) -> Float[Array, "*batch outputs"]:
    """Returns `x @ kernel`, computed with a single batch axis, as a `dot_general`.

    The kernel's gradient is a sum over tokens. Over several axes of tokens, the CPU
    compiler would first transpose `x`, which takes longer than the sum. Options are
    those of `jax.lax.dot_general`.
    """
    del dimension_numbers  # always the last axis of x and the first of the kernel
    flat = x.reshape(-1, x.shape[-1])
    out = jax.lax.dot_general(flat, kernel, (((1,), (0,)), ((), ())), **options)
    return out.reshape(*x.shape[:-1], kernel.shape[1])
