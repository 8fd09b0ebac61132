"""Weighted sums of table rows, on one device or on a mesh.

On a mesh each device computes what it can from its own part of the table, and one
collective follows. Left alone, the compiler would sum rows over devices before they are
weighted, and communicate gradients of the table's shape. Sums of rows are split by
`model` along value_dim, whatever the split of the table.
"""

import functools
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from smf_jax.kernels import row_sums_xla
from smf_jax.kernels.sharded import local_rows, token_spec
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

    No row leaves its device: sums are added over devices that hold different slots. For
    the table's gradient, tokens are gathered instead.

    >>> values = jnp.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    >>> weighted_rows(values, jnp.array([[0, 2]]), jnp.array([[0.5, 0.25]])).tolist()
    [[1.0, 0.5]]
    """

    def local(values, slots, weights):
        slots, weights = (layout.gather(leaf, batch, 0) for leaf in (slots, weights))
        index, is_here = local_rows(layout, len(values), slots)
        index, weights = (jnp.where(is_here, leaf, 0) for leaf in (index, weights))
        sums = kernels(layout).weighted_rows(values, index, weights, layout.platform)
        sums = layout.scatter(sums, layout.model_row_axes, sums.ndim - 1)
        return layout.scatter(sums, batch, 0)

    batch, tokens = layout.batch_row_axes, token_spec(slots)
    specs = (layout.table_spec, tokens, tokens)
    run = layout.shard_map(local, specs, token_spec(slots, "model"))
    return run(values, slots, weights)


def _forward(values, slots, weights, layout):
    return weighted_rows(values, slots, weights, layout), (values, slots, weights)


def _backward(layout, residuals, cotangent):
    batch, model = layout.batch_row_axes, layout.model_row_axes

    def table_gradient(values, slots, weights, cotangent):
        slots, weights, cotangent = (
            layout.gather(leaf, BATCH, leaf.ndim - 3)
            for leaf in (slots, weights, cotangent)
        )
        cotangent = layout.gather(cotangent, model, cotangent.ndim - 1)
        index, is_here = local_rows(layout, len(values), slots)
        index = jnp.where(is_here, index, len(values))
        gradient = kernels(layout).table_gradient(
            cotangent, index, weights, len(values), layout.platform
        )
        return gradient.astype(values.dtype)

    def weight_gradient(values, slots, weights, cotangent):
        slots, cotangent = (
            layout.gather(leaf, batch, 0) for leaf in (slots, cotangent)
        )
        cotangent = layout.gather(cotangent, model, cotangent.ndim - 1)
        index, is_here = local_rows(layout, len(values), slots)
        gradient = kernels(layout).weight_gradient(
            values, jnp.where(is_here, index, 0), cotangent, layout.platform
        )
        gradient = layout.psum(jnp.where(is_here, gradient, 0), ("model",))
        return layout.scatter(gradient, batch, 0).astype(weights.dtype)

    tokens = token_spec(residuals[1])
    sums = token_spec(residuals[1], "model")
    specs = (layout.table_spec, tokens, tokens, sums)
    # Two maps, so that a gradient that is not used is not computed.
    of_table = layout.shard_map(table_gradient, specs, layout.table_spec)
    of_weights = layout.shard_map(weight_gradient, specs, tokens)
    return of_table(*residuals, cotangent), None, of_weights(*residuals, cotangent)


weighted_rows.defvjp(_forward, _backward)


def kernels(layout: MeshLayout) -> ModuleType:
    """Returns the module of row sums and their gradients on one device."""
    if layout.compute.lookup == "pallas":
        # Imported on use: Triton is slow to import, and most runs do not need it.
        from smf_jax.kernels import row_sums_gpu

        return row_sums_gpu
    return row_sums_xla
