"""The linear map and the norm that every layer is made of."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from smf_jax.config import ModelConfig
from smf_jax.model.products import product, rounded_product
from smf_jax.sharding import MeshLayout


def linear(
    inputs: int,
    outputs: int,
    layout: MeshLayout,
    *,
    use_bias: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """Makes a linear map that preserves norms of about 1."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        kernel_init=nnx.initializers.truncated_normal(inputs**-0.5),
        dtype=layout.compute.activations,
        dot_general=rounded_product if layout.rounds_factors else product,
        # The gradient of a bias is a sum over all tokens.
        preferred_element_type=jnp.float32 if use_bias else None,
        rngs=rngs,
    )


def rms_norm(
    width: int, config: ModelConfig, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.RMSNorm:
    """Makes a norm of vectors of a width, with the epsilon of the model."""
    return nnx.RMSNorm(width, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
