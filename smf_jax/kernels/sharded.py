"""A memory's array work on a mesh: each device on its part, then one collective.

Left to itself the compiler would sum rows over devices before they are weighted, send
gradients of the table's shape around, and gather a batch to rank it.

Arrays of [..., batch, seq, ...] are shared by the axes of `BATCH`. Sums of rows are
split by `model` along value_dim as well, whatever the layout of the table.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from smf_jax.kernels import product_key, row_sums
from smf_jax.sharding import BATCH, MeshLayout


def of_tokens(array: Array, last: str | None = None) -> PartitionSpec:
    """Returns how [..., batch, seq, width] is split."""
    return PartitionSpec(*(None,) * (array.ndim - 3), BATCH, None, last)


def embed(
    layout: MeshLayout,
    table: Float[Array, "vocab dim"],
    tokens: Int[Array, "batch seq"],
) -> Float[Array, "batch seq dim"]:
    """Returns the row of each token, and NaN for one outside the vocabulary.

    Rows are of the type of activations. The gradient of the table is summed in its own:
    in bfloat16 a word that is there 4,096 times would count 256 times.
    """
    dtype = layout.compute.activations
    split = layout.spec("embedding", table.shape)

    def local(table, tokens):
        first = 0
        if layout.mesh is not None:
            if split[1]:
                table = gather(table, split[1], 1)
            if split[0]:
                first = jax.lax.axis_index(split[0]) * len(table)
        place = tokens - first
        # A negative id would count from the end.
        place = jnp.where(place < 0, len(table), place)
        rows = table.at[place].get(mode="fill", fill_value=0).astype(dtype)
        if layout.mesh is not None and split[0]:
            rows = jax.lax.psum(rows, split[0])
        return rows

    specs = (split, PartitionSpec(BATCH))
    rows = layout.shard_map(local, specs, PartitionSpec(BATCH), check=True)
    is_known = (tokens >= 0) & (tokens < len(table))
    return jnp.where(is_known[..., None], rows(table, tokens), jnp.nan)


def take_positions(
    layout: MeshLayout,
    array: Shaped[Array, "batch seq ..."],
    places: Int[Array, "batch some"],
) -> Shaped[Array, "batch some ..."]:
    """Returns of each row the entries at its own places, which must exist."""

    def local(array, places):
        places = places.reshape(*places.shape, *(1,) * (array.ndim - 2))
        return jnp.take_along_axis(array, places, 1, mode="promise_in_bounds")

    rows = PartitionSpec(BATCH)
    return layout.shard_map(local, (rows, rows), rows, check=True)(array, places)


def product_key_top_k(
    layout: MeshLayout,
    query: Float[Array, "batch seq heads 2 half"],
    keys: Float[Array, "heads 2 num_keys half"],
    top_k: int,
) -> tuple[Int[Array, "batch seq heads top_k"], Float[Array, "batch seq heads top_k"]]:
    """Returns what `product_key.product_key_top_k` does; each ranks its own tokens."""
    if layout.mesh is None:
        return product_key.product_key_top_k(query, keys, top_k, layout.platform)
    return _product_key_top_k(layout, top_k, query, keys)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product_key_top_k(layout, top_k, query, keys):
    tokens = PartitionSpec(BATCH)
    specs = (tokens, PartitionSpec())

    def local(query, keys):
        return product_key.product_key_top_k(query, keys, top_k, layout.platform)

    return layout.shard_map(local, specs, (tokens, tokens))(query, keys)


def _rank_forward(layout, top_k, query, keys):
    slots, scores = _product_key_top_k(layout, top_k, query, keys)
    return (slots, scores), (query, keys, slots)


def _rank_backward(layout, top_k, residuals, cotangents):
    del top_k

    def local(*given):
        of_query, of_keys = product_key.scores_gradient(*given)
        return of_query, jax.lax.psum(of_keys, BATCH)

    tokens, everywhere = PartitionSpec(BATCH), PartitionSpec()
    specs = (tokens, everywhere, tokens, tokens)
    run = layout.shard_map(local, specs, (tokens, everywhere))
    return run(*residuals, cotangents[1])


_product_key_top_k.defvjp(_rank_forward, _rank_backward)


def weighted_rows(
    layout: MeshLayout,
    values: Float[Array, "num_slots value_dim"],
    slots: Int[Array, "batch seq reads"],
    weights: Float[Array, "batch seq reads"],
) -> Float[Array, "batch seq value_dim"]:
    """Returns what `row_sums.weighted_rows` does, with the same gradients.

    Devices that hold other slots each sum the rows they hold, and the sums are summed:
    never a row that is not. For the table's gradient each device is sent the tokens
    that it lacks, so that no array of the table's shape is.
    """
    if layout.mesh is None and layout.compute.lookup == "xla":
        return row_sums.weighted_rows(values, slots, weights, layout.platform)
    return _weighted_rows(layout, values, slots, weights)


class Kernels(NamedTuple):
    """What sums rows, and the gradients of it; `rows` says what each returns."""

    weighted_rows: Callable
    weight_gradient: Callable
    table_gradient: Callable


def kernels(layout: MeshLayout) -> Kernels:
    """Returns what sums rows on a layout's devices."""
    platform = layout.platform
    if layout.compute.lookup == "xla":
        functions = (
            row_sums.weighted_rows,
            row_sums.weight_gradient,
            row_sums.table_gradient,
        )
        on_it = (functools.partial(each, platform=platform) for each in functions)
        return Kernels(*on_it)
    # Imported on use: Triton is slow to import and most runs do not need it.
    from smf_jax.kernels import row_sums_gpu as gpu

    return Kernels(gpu.weighted_rows, gpu.weight_gradient, gpu.table_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_rows(layout, values, slots, weights):
    def local(values, slots, weights):
        slots, weights = (
            _from_others(layout, slots),
            _from_others(layout, weights),
        )
        place, is_here = local_rows(layout, len(values), slots)
        sums = kernels(layout).weighted_rows(
            values, jnp.where(is_here, place, 0), jnp.where(is_here, weights, 0)
        )
        if "model" in layout.row_axes:
            sums = scatter(sums, "model", sums.ndim - 1)
        return _back_to_others(layout, sums)

    specs = (layout.table_spec, of_tokens(slots), of_tokens(slots))
    out = of_tokens(slots, "model")
    return layout.shard_map(local, specs, out)(values, slots, weights)


def _forward(layout, values, slots, weights):
    return _weighted_rows(layout, values, slots, weights), (values, slots, weights)


def _backward(layout, residuals, cotangent):
    def of_table(values, slots, weights, cotangent):
        cotangent, slots, weights = all_tokens(layout, cotangent, slots, weights)
        place, is_here = local_rows(layout, len(values), slots)
        place = jnp.where(is_here, place, len(values))
        table_gradient = kernels(layout).table_gradient
        gradient = table_gradient(cotangent, place, weights, len(values))
        return gradient.astype(values.dtype)

    def of_weights(values, slots, weights, cotangent):
        slots, cotangent = (
            _from_others(layout, slots),
            _from_others(layout, cotangent),
        )
        if "model" in layout.row_axes:
            cotangent = gather(cotangent, "model", cotangent.ndim - 1)
        place, is_here = local_rows(layout, len(values), slots)
        weight_gradient = kernels(layout).weight_gradient
        gradient = weight_gradient(values, jnp.where(is_here, place, 0), cotangent)
        gradient = jnp.where(is_here, gradient, 0)
        if layout.mesh is not None:
            gradient = jax.lax.psum(gradient, "model")
        return _back_to_others(layout, gradient).astype(weights.dtype)

    slots = residuals[1]
    tokens = of_tokens(slots)
    specs = (layout.table_spec, tokens, tokens, of_tokens(slots, "model"))
    # Two, so that the one that nobody asks for is not computed.
    return (
        layout.shard_map(of_table, specs, layout.table_spec)(*residuals, cotangent),
        None,
        layout.shard_map(of_weights, specs, tokens)(*residuals, cotangent),
    )


_weighted_rows.defvjp(_forward, _backward)


def sum_weights(
    layout: MeshLayout,
    slots: Int[Array, "batch seq reads"],
    weights: Float[Array, "batch seq reads"],
    num_slots: int,
) -> Float[Array, " num_slots"]:
    """Returns the sum of the weights on each slot; every device has all of them."""

    def local(slots, weights):
        sums = jnp.zeros(num_slots, weights.dtype).at[slots].add(weights, mode="drop")
        return sums if layout.mesh is None else jax.lax.psum(sums, BATCH)

    specs = (of_tokens(slots), of_tokens(slots))
    summed = layout.shard_map(local, specs, PartitionSpec(), check=True)
    return summed(slots, weights)


def all_tokens(
    layout: MeshLayout, cotangent: Array, slots: Array, weights: Array
) -> tuple[Array, Array, Array]:
    """Returns what a device needs for the gradient of the rows that it holds.

    These are the tokens of all devices, and whole rows unless it holds some columns.
    """
    if layout.mesh is not None:
        cotangent, slots, weights = (
            gather(leaf, BATCH, leaf.ndim - 3) for leaf in (cotangent, slots, weights)
        )
    if "model" in layout.row_axes:
        cotangent = gather(cotangent, "model", cotangent.ndim - 1)
    return cotangent, slots, weights


def local_rows(layout: MeshLayout, held: int, slots: Array) -> tuple[Array, Array]:
    """Returns where slots are in this device's rows of a table, and which are there."""
    first = 0
    if layout.mesh is not None and layout.row_axes:
        first = jax.lax.axis_index(layout.row_axes) * held
    place = slots - first
    return place, (place >= 0) & (place < held)


def _from_others(layout: MeshLayout, array: Array) -> Array:
    """Returns tokens [batch, ...] of all devices that hold other slots than this."""
    return gather(array, BATCH, 0) if BATCH[0] in layout.row_axes else array


def _back_to_others(layout: MeshLayout, array: Array) -> Array:
    """Returns the sum of what such devices have for the tokens of this one."""
    return scatter(array, BATCH, 0) if BATCH[0] in layout.row_axes else array


def gather(array: Array, axes: str | tuple[str, ...], dimension: int) -> Array:
    """Returns the parts of all devices along some axes, one after the other."""
    return jax.lax.all_gather(array, axes, axis=dimension, tiled=True)


def scatter(array: Array, axes: str | tuple[str, ...], dimension: int) -> Array:
    """Returns a device's part of the sum over all devices along some axes."""
    return jax.lax.psum_scatter(array, axes, scatter_dimension=dimension, tiled=True)
