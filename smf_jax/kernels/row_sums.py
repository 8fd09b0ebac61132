"""Weighted sums of table rows, on one device or on a mesh.

On a mesh each device computes what it can from its own part of the table, and one
collective follows. Left alone, the compiler would sum rows over devices before they are
weighted, and communicate gradients of the table's shape. Sums of rows are split by
`model` along value_dim, whatever the split of the table.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from smf_jax.kernels import row_sums_xla
from smf_jax.kernels.sharded import gather, local_rows, scatter, token_spec
from smf_jax.sharding import BATCH, ONE_DEVICE, MeshLayout


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def weighted_rows(
    values: Float[Array, "num_slots value_dim"],
    slots: Int[Array, "*batch reads"],
    weights: Float[Array, "*batch reads"],
    layout: MeshLayout = ONE_DEVICE,
) -> Float[Array, "*batch value_dim"]:
    """Returns the sum of `weights * values[slots]` over the reads of each token.

    Slots must exist. Sums are float32, and cast to the type of `values` at the end.
    The gradient of `values` is dense, as pretraining needs it;
    `table_rows.selected_rows_gradient` computes that of a few rows.

    Devices that hold different slots each sum their own rows, and the sums are added:
    no row leaves its device. For the table's gradient, tokens are gathered instead, so
    that nothing of the table's shape is communicated.
    """

    def local(values, slots, weights):
        slots, weights = (_gather_batch(layout, leaf) for leaf in (slots, weights))
        index, is_here = local_rows(layout, len(values), slots)
        sums = kernels(layout).weighted_rows(
            values, jnp.where(is_here, index, 0), jnp.where(is_here, weights, 0)
        )
        if "model" in layout.row_axes:
            sums = scatter(sums, "model", sums.ndim - 1)
        return _scatter_batch(layout, sums)

    tokens = token_spec(slots)
    specs = (layout.table_spec, tokens, tokens)
    run = layout.shard_map(local, specs, token_spec(slots, "model"))
    return run(values, slots, weights)


def _forward(values, slots, weights, layout):
    return weighted_rows(values, slots, weights, layout), (values, slots, weights)


def _backward(layout, residuals, cotangent):
    def table_gradient(values, slots, weights, cotangent):
        if layout.mesh is not None:
            slots, weights, cotangent = (
                gather(leaf, BATCH, leaf.ndim - 3)
                for leaf in (slots, weights, cotangent)
            )
        cotangent = _whole_rows(layout, cotangent)
        index, is_here = local_rows(layout, len(values), slots)
        index = jnp.where(is_here, index, len(values))
        gradient = kernels(layout).table_gradient(
            cotangent, index, weights, len(values)
        )
        return gradient.astype(values.dtype)

    def weight_gradient(values, slots, weights, cotangent):
        slots, cotangent = (_gather_batch(layout, leaf) for leaf in (slots, cotangent))
        cotangent = _whole_rows(layout, cotangent)
        index, is_here = local_rows(layout, len(values), slots)
        gradient = kernels(layout).weight_gradient(
            values, jnp.where(is_here, index, 0), cotangent
        )
        gradient = layout.psum(jnp.where(is_here, gradient, 0), ("model",))
        return _scatter_batch(layout, gradient).astype(weights.dtype)

    tokens = token_spec(residuals[1])
    sums = token_spec(residuals[1], "model")
    specs = (layout.table_spec, tokens, tokens, sums)
    # Two maps, so that a gradient that is not used is not computed.
    of_table = layout.shard_map(table_gradient, specs, layout.table_spec)
    of_weights = layout.shard_map(weight_gradient, specs, tokens)
    return of_table(*residuals, cotangent), None, of_weights(*residuals, cotangent)


weighted_rows.defvjp(_forward, _backward)


class Kernels(NamedTuple):
    """The sums of rows and their gradients on one device; see `row_sums_xla`."""

    weighted_rows: Callable
    weight_gradient: Callable
    table_gradient: Callable


def kernels(layout: MeshLayout) -> Kernels:
    """Returns the kernels for a layout's devices."""
    if layout.compute.lookup == "pallas":
        # Imported on use: Triton is slow to import, and most runs do not need it.
        from smf_jax.kernels import row_sums_gpu

        return Kernels(*(getattr(row_sums_gpu, name) for name in Kernels._fields))
    functions = (getattr(row_sums_xla, name) for name in Kernels._fields)
    platform = layout.platform
    return Kernels(*(functools.partial(f, platform=platform) for f in functions))


def _whole_rows(layout: MeshLayout, sums: Array) -> Array:
    """Returns sums with all columns, if this device holds whole rows."""
    return gather(sums, "model", sums.ndim - 1) if "model" in layout.row_axes else sums


def _gather_batch(layout: MeshLayout, array: Array) -> Array:
    """Returns the tokens [batch, ...] of all devices that hold different slots."""
    return gather(array, BATCH, 0) if BATCH[0] in layout.row_axes else array


def _scatter_batch(layout: MeshLayout, array: Array) -> Array:
    """Returns this device's tokens of the sum over such devices."""
    return scatter(array, BATCH, 0) if BATCH[0] in layout.row_axes else array
