"""Products of matrices whose factors are rounded to bfloat16, and summed in float32.

Some CPUs multiply bfloat16 several times faster than float32, if the result is float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FLOAT32 = {"preferred_element_type": jnp.float32}


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


def rounded_product(
    x: Float[Array, "*batch inputs"],
    kernel: Float[Array, "inputs outputs"],
    dimension_numbers: Any = None,
    preferred_element_type: Any = None,
    **options: Any,
) -> Float[Array, "*batch outputs"]:
    """Returns `product` of factors rounded to bfloat16."""
    del dimension_numbers, options
    flat = x.reshape(-1, x.shape[-1])
    tokens = len(flat)
    if tokens == 1:  # XLA has no fast product of one row: it takes 4 times that of two
        flat = jnp.repeat(flat, 2, axis=0)
    out = rounded_einsum("ti,io->to", flat, kernel)[:tokens]
    out = out.astype(preferred_element_type or x.dtype)
    return out.reshape(*x.shape[:-1], kernel.shape[1])


def einsum(spec: str, left: Array, right: Array) -> Float[Array, "..."]:
    """Returns the `jnp.einsum` of two arrays in float32."""
    return jnp.einsum(spec, left, right, **FLOAT32)


def rounded_einsum(spec: str, left: Array, right: Array) -> Float[Array, "..."]:
    """Returns the einsum of factors rounded to bfloat16, in float32.

    So are the products of its gradient, whose factors include the cotangent. Each axis
    of `spec` must occur in two of the three arrays, or in all of them.
    """
    return _rounded(spec, left.dtype, right.dtype, left, right)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _rounded(spec, left_type, right_type, left, right):
    del left_type, right_type
    return einsum(spec, left.astype(jnp.bfloat16), right.astype(jnp.bfloat16))


def _forward(spec, left_type, right_type, left, right):
    del left_type, right_type
    left, right = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
    return einsum(spec, left, right), (left, right)


def _backward(spec, left_type, right_type, factors, cotangent):
    inputs, out = spec.split("->")
    of_left, of_right = inputs.split(",")
    left, right = factors
    cotangent = cotangent.astype(jnp.bfloat16)
    left_grad = einsum(f"{out},{of_right}->{of_left}", cotangent, right)
    right_grad = einsum(f"{of_left},{out}->{of_right}", left, cotangent)
    return left_grad.astype(left_type), right_grad.astype(right_type)


_rounded.defvjp(_forward, _backward)
