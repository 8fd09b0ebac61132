"""A memory's array work on a mesh: each device on its part, then one collective.

Left to itself the compiler would sum rows over devices before they are weighted, send
gradients of the table's shape around, and gather a batch to rank it.

Arrays of [..., batch, seq, ...] are shared by the axes of `BATCH`. Sums of rows are
split by `model` along value_dim as well, whatever the layout of the table.
"""

import functools
from types import ModuleType

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from smf_jax.kernels import product_key, rows
from smf_jax.sharding import BATCH, Placement

_ROWS = PartitionSpec(None, "model")  # [top_t, value_dim] of chosen slots


def _tokens(array: Array, last: str | None = None) -> PartitionSpec:
    """Returns how [..., batch, seq, width] is split."""
    return PartitionSpec(*(None,) * (array.ndim - 3), BATCH, None, last)


def embed(
    placement: Placement,
    table: Float[Array, "vocab dim"],
    tokens: Int[Array, "batch seq"],
) -> Float[Array, "batch seq dim"]:
    """Returns the row of each token, and NaN for one outside the vocabulary.

    Rows are of the type of activations. The gradient of the table is summed in its own:
    in bfloat16 a word that is there 4,096 times would count 256 times.
    """
    dtype = placement.compute.activations
    split = placement.spec("embedding", table.shape)

    def local(table, tokens):
        first = 0
        if placement.mesh is not None:
            if split[1]:
                table = _gather(table, split[1], 1)
            if split[0]:
                first = jax.lax.axis_index(split[0]) * len(table)
        place = tokens - first
        # A negative id would count from the end.
        place = jnp.where(place < 0, len(table), place)
        rows = table.at[place].get(mode="fill", fill_value=0).astype(dtype)
        if placement.mesh is not None and split[0]:
            rows = jax.lax.psum(rows, split[0])
        return rows

    specs = (split, PartitionSpec(BATCH))
    rows = placement.on_shards(local, specs, PartitionSpec(BATCH), check=True)
    is_known = (tokens >= 0) & (tokens < len(table))
    return jnp.where(is_known[..., None], rows(table, tokens), jnp.nan)


def take_places(
    placement: Placement,
    array: Shaped[Array, "batch seq ..."],
    places: Int[Array, "batch some"],
) -> Shaped[Array, "batch some ..."]:
    """Returns of each row the entries at its own places, which must exist."""

    def local(array, places):
        places = places.reshape(*places.shape, *(1,) * (array.ndim - 2))
        return jnp.take_along_axis(array, places, 1, mode="promise_in_bounds")

    rows = PartitionSpec(BATCH)
    return placement.on_shards(local, (rows, rows), rows, check=True)(array, places)


def product_key_top_k(
    placement: Placement,
    query: Float[Array, "batch seq heads 2 half"],
    keys: Float[Array, "heads 2 num_keys half"],
    top_k: int,
) -> tuple[Int[Array, "batch seq heads top_k"], Float[Array, "batch seq heads top_k"]]:
    """Returns what `product_key.product_key_top_k` does; each ranks its own tokens."""
    tokens = PartitionSpec(BATCH)
    local = functools.partial(product_key.product_key_top_k, top_k=top_k)
    specs = (tokens, PartitionSpec())
    return placement.on_shards(local, specs, (tokens, tokens), check=True)(query, keys)


def weighted_rows(
    placement: Placement,
    values: Float[Array, "num_slots value_dim"],
    slots: Int[Array, "batch seq reads"],
    weights: Float[Array, "batch seq reads"],
) -> Float[Array, "batch seq value_dim"]:
    """Returns what `rows.weighted_rows` does, with the same gradients.

    Devices that hold other slots each sum the rows they hold, and the sums are summed:
    never a row that is not. For the table's gradient each device is sent the tokens
    that it lacks, so that no array of the table's shape is.
    """
    if placement.mesh is None and placement.compute.lookup == "xla":
        return rows.weighted_rows(values, slots, weights)
    return _weighted_rows(placement, values, slots, weights)


def _kernels(placement: Placement) -> ModuleType:
    if placement.compute.lookup == "xla":
        return rows
    # Not before they are asked for: they load what of jax few need.
    if placement.platform == "tpu":
        from smf_jax.kernels import rows_tpu

        return rows_tpu
    from smf_jax.kernels import rows_gpu

    return rows_gpu


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_rows(placement, values, slots, weights):
    def local(values, slots, weights):
        slots, weights = (
            _from_others(placement, slots),
            _from_others(placement, weights),
        )
        place, is_here = _places(placement, len(values), slots)
        sums = _kernels(placement).weighted_rows(
            values, jnp.where(is_here, place, 0), jnp.where(is_here, weights, 0)
        )
        if "model" in placement.row_axes:
            sums = _scatter(sums, "model", sums.ndim - 1)
        return _back_to_others(placement, sums)

    specs = (placement.table, _tokens(slots), _tokens(slots))
    out = _tokens(slots, "model")
    return placement.on_shards(local, specs, out)(values, slots, weights)


def _forward(placement, values, slots, weights):
    return _weighted_rows(placement, values, slots, weights), (values, slots, weights)


def _backward(placement, residuals, cotangent):
    def of_table(values, slots, weights, cotangent):
        if placement.mesh is not None:
            slots, weights, cotangent = (
                _gather(leaf, BATCH, 0) for leaf in (slots, weights, cotangent)
            )
        if "model" in placement.row_axes:
            cotangent = _gather(cotangent, "model", cotangent.ndim - 1)
        place, is_here = _places(placement, len(values), slots)
        place = jnp.where(is_here, place, len(values))
        table_gradient = _kernels(placement).table_gradient
        gradient = table_gradient(cotangent, place, weights, len(values))
        return gradient.astype(values.dtype)

    def of_weights(values, slots, weights, cotangent):
        slots, cotangent = (
            _from_others(placement, slots),
            _from_others(placement, cotangent),
        )
        if "model" in placement.row_axes:
            cotangent = _gather(cotangent, "model", cotangent.ndim - 1)
        place, is_here = _places(placement, len(values), slots)
        weight_gradient = _kernels(placement).weight_gradient
        gradient = weight_gradient(values, jnp.where(is_here, place, 0), cotangent)
        gradient = jnp.where(is_here, gradient, 0)
        if placement.mesh is not None:
            gradient = jax.lax.psum(gradient, "model")
        return _back_to_others(placement, gradient).astype(weights.dtype)

    slots = residuals[1]
    tokens = _tokens(slots)
    specs = (placement.table, tokens, tokens, _tokens(slots, "model"))
    # Two, so that the one that nobody asks for is not computed.
    return (
        placement.on_shards(of_table, specs, placement.table)(*residuals, cotangent),
        None,
        placement.on_shards(of_weights, specs, tokens)(*residuals, cotangent),
    )


_weighted_rows.defvjp(_forward, _backward)


def chosen_rows_gradient(
    placement: Placement,
    cotangent: Float[Array, "*parts batch seq value_dim"],
    slots: Int[Array, "*parts batch seq reads"],
    weights: Float[Array, "*parts batch seq reads"],
    chosen: Int[Array, " top_t"],
    num_slots: int,
) -> Float[Array, "top_t value_dim"]:
    """Returns what `rows.chosen_rows_gradient` does: sums of each device's tokens."""

    def local(cotangent, slots, weights, chosen):
        gradient = rows.chosen_rows_gradient(
            cotangent, slots, weights, chosen, num_slots
        )
        return gradient if placement.mesh is None else jax.lax.psum(gradient, BATCH)

    specs = (
        *(_tokens(cotangent, "model"), _tokens(slots), _tokens(slots)),
        PartitionSpec(),
    )
    return placement.on_shards(local, specs, _ROWS)(cotangent, slots, weights, chosen)


def sum_weights(
    placement: Placement,
    slots: Int[Array, "batch seq reads"],
    weights: Float[Array, "batch seq reads"],
    num_slots: int,
) -> Float[Array, " num_slots"]:
    """Returns the sum of the weights on each slot; every device has all of them."""

    def local(slots, weights):
        sums = jnp.zeros(num_slots, weights.dtype).at[slots].add(weights, mode="drop")
        return sums if placement.mesh is None else jax.lax.psum(sums, BATCH)

    specs = (_tokens(slots), _tokens(slots))
    summed = placement.on_shards(local, specs, PartitionSpec(), check=True)
    return summed(slots, weights)


def take_rows(
    placement: Placement,
    table: Shaped[Array, "num_slots ..."],
    slots: Int[Array, " top_t"],
) -> Shaped[Array, "top_t ..."]:
    """Returns rows of a table, and zeros for ids of num_slots or more."""

    def local(table, slots):
        place, is_here = _places(placement, len(table), slots)
        place = jnp.where(is_here, place, len(table))
        taken = table.at[place].get(mode="fill", fill_value=0)
        if "model" in placement.row_axes:
            taken = _scatter(taken, "model", 1)
        others = tuple(axis for axis in placement.row_axes if axis in BATCH)
        return jax.lax.psum(taken, others) if others else taken

    specs = (placement.table, PartitionSpec())
    return placement.on_shards(local, specs, _ROWS)(table, slots)


def put_rows(
    placement: Placement,
    table: Shaped[Array, "num_slots ..."],
    slots: Int[Array, " top_t"],
    new: Shaped[Array, "top_t ..."],
) -> Shaped[Array, "num_slots ..."]:
    """Returns a table with rows replaced; ids, all different, past its end are none."""

    def local(table, slots, new):
        if "model" in placement.row_axes:
            new = _gather(new, "model", 1)
        place, is_here = _places(placement, len(table), slots)
        # Different from one another, as is promised.
        none = len(table) + jnp.arange(len(slots), dtype=slots.dtype)
        place = jnp.where(is_here, place, none)
        return table.at[place].set(
            new.astype(table.dtype), mode="drop", unique_indices=True
        )

    specs = (placement.table, PartitionSpec(), _ROWS)
    return placement.on_shards(local, specs, placement.table)(table, slots, new)


def _places(placement: Placement, held: int, slots: Array) -> tuple[Array, Array]:
    """Returns where slots are in this device's rows of a table, and which are there."""
    first = 0
    if placement.mesh is not None and placement.row_axes:
        first = jax.lax.axis_index(placement.row_axes) * held
    place = slots - first
    return place, (place >= 0) & (place < held)


def _from_others(placement: Placement, array: Array) -> Array:
    """Returns tokens [batch, ...] of all devices that hold other slots than this."""
    return _gather(array, BATCH, 0) if BATCH[0] in placement.row_axes else array


def _back_to_others(placement: Placement, array: Array) -> Array:
    """Returns the sum of what such devices have for the tokens of this one."""
    return _scatter(array, BATCH, 0) if BATCH[0] in placement.row_axes else array


def _gather(array, axes, dimension):
    return jax.lax.all_gather(array, axes, axis=dimension, tiled=True)


def _scatter(array, axes, dimension):
    return jax.lax.psum_scatter(array, axes, scatter_dimension=dimension, tiled=True)
