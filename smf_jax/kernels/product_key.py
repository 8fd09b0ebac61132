"""The exact top-k of n * n product keys, without scoring all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from smf_jax.kernels.chunks import in_chunks
from smf_jax.sharding import BATCH, ONE_DEVICE, MeshLayout

SCORES_PER_CHUNK = 2**22  # 16 MiB
GROUP_SIZE = 16  # the fastest for 1,024 scores
_TOKENS, _REPLICATED = PartitionSpec(BATCH), PartitionSpec()
# Accelerators would otherwise round the factors, and select other slots.
_einsum = functools.partial(
    jnp.einsum, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def product_key_top_k(
    query: Float[Array, "*batch heads 2 half"],
    keys: Float[Array, "heads 2 num_keys half"],
    top_k: int,
    platform: str | None = None,
    layout: MeshLayout = ONE_DEVICE,
) -> tuple[Int[Array, "*batch heads top_k"], Float[Array, "*batch heads top_k"]]:
    """Returns the slots with the highest scores, best first, and their scores.

    Slot a * num_keys + b has the key (keys[0, a], keys[1, b]), and its score is the
    sum of the two dot products, so the best pairs lie among the best of each half.
    Ties go to the lower slot; scores that are equal on paper may differ in the last
    bit of their float32 sums. Scores are differentiable.

    On a mesh each device ranks its own part of the batch. `top_k` is at most num_keys.

    >>> query = jnp.array([[[[1.0], [2.0]]]])  # one token, one head, two halves
    >>> keys = jnp.array([[[[0.0], [3.0]], [[1.0], [5.0]]]])  # two half-keys each
    >>> slots, scores = product_key_top_k(query, keys, 2)
    >>> slots.tolist(), scores.tolist()
    ([[[3, 1]]], [[[13.0, 10.0]]])

    Source: Lample et al. 2019, arXiv:1907.05242.
    """
    rank = functools.partial(_rank, top_k=top_k, platform=platform or layout.platform)
    run = layout.shard_map(rank, (_TOKENS, _REPLICATED), (_TOKENS, _TOKENS))
    return run(query, keys)


def _forward(query, keys, top_k, platform, layout):
    slots, scores = product_key_top_k(query, keys, top_k, platform, layout)
    return (slots, scores), (query, keys, slots)


def _backward(top_k, platform, layout, residuals, cotangents):
    del top_k, platform

    def local(query, keys, slots, cotangent):
        query_grad, keys_grad = _scores_gradient(query, keys, slots, cotangent)
        return query_grad, layout.psum(keys_grad, BATCH)

    specs = (_TOKENS, _REPLICATED, _TOKENS, _TOKENS)
    run = layout.shard_map(local, specs, (_TOKENS, _REPLICATED))
    return run(*residuals, cotangents[1])


product_key_top_k.defvjp(_forward, _backward)


def _scores_gradient(query, keys, slots, cotangent):
    heads, pair, num_keys, half = keys.shape
    top_k = slots.shape[-1]
    tokens = slots.size // (heads * top_k)

    def add_chunk(keys_grad, chunk):
        query, slots, cotangent = chunk  # [tokens, heads, ...]
        indices = jnp.stack([slots // num_keys, slots % num_keys])
        weights = jnp.broadcast_to(cotangent, indices.shape)
        # [heads, 2, tokens, top_k]
        indices, weights = (jnp.moveaxis(leaf, 2, 0) for leaf in (indices, weights))
        row = jnp.arange(indices[..., 0].size)[:, None]
        mix = jnp.zeros((row.size, num_keys), jnp.float32)
        mix = mix.at[row, indices.reshape(row.size, -1)].add(
            weights.reshape(row.size, -1), mode="promise_in_bounds"
        )
        mix = mix.reshape(heads, pair, -1, num_keys)
        query_grad = _einsum("hptn,hpnc->thpc", mix, keys)
        return keys_grad + _einsum("hptn,thpc->hpnc", mix, query), query_grad

    chunks = [
        in_chunks(leaf.reshape(tokens, heads, *shape), _chunk_size(tokens, keys))
        for leaf, *shape in ((query, pair, half), (slots, top_k), (cotangent, top_k))
    ]
    zeros = jnp.zeros(keys.shape, jnp.float32)
    keys_grad, query_grad = jax.lax.scan(add_chunk, zeros, chunks)
    query_grad = query_grad.reshape(-1, heads, pair, half)[:tokens]
    query_grad = query_grad.reshape(query.shape).astype(query.dtype)
    return query_grad, keys_grad.astype(keys.dtype)


def _chunk_size(tokens: int, keys: Array) -> int:
    scores = tokens * (keys.size // keys.shape[-1])
    chunks = max(1, -(-scores // SCORES_PER_CHUNK))
    return -(-tokens // chunks)


def _rank(query, keys, top_k, platform):
    *batch, heads, pair, half = query.shape
    query = query.reshape(-1, heads, pair, half)
    rank = functools.partial(_rank_tokens, keys=keys, top_k=top_k, platform=platform)
    if platform == "cpu":  # so few tokens at a time that their scores stay in its cache
        tokens = len(query)
        ranked = jax.lax.map(rank, in_chunks(query, _chunk_size(tokens, keys)))
        ranked = [leaf.reshape(-1, heads, top_k)[:tokens] for leaf in ranked]
    else:
        ranked = rank(query)
    slots, scores = (leaf.reshape(*batch, heads, top_k) for leaf in ranked)
    return slots, scores


def _rank_tokens(query, keys, top_k, platform):
    largest, best_pairs = ALGORITHMS[platform]
    num_keys = keys.shape[2]
    # In another order of axes a CPU would take twice as long.
    scores = _einsum("thpc,hpnc->hptn", query, keys)
    half_scores, indices = largest(scores, top_k)
    # Ranks (i, j) are beaten by the (i + 1) * (j + 1) - 1 pairs of lower ranks, so only
    # about top_k * log(top_k) of the top_k**2 pairs can be among the best.
    first, second = np.indices((top_k, top_k))
    first, second = np.nonzero((first + 1) * (second + 1) <= top_k)
    scores = half_scores[:, 0][..., first] + half_scores[:, 1][..., second]
    slots = indices[:, 0][..., first] * num_keys + indices[:, 1][..., second]
    best = best_pairs(scores, slots, top_k)
    return tuple(
        jnp.take_along_axis(leaf, best, -1, mode="promise_in_bounds").swapaxes(0, 1)
        for leaf in (slots, scores)
    )


def _largest_by_groups(scores: Array, top_k: int) -> tuple[Array, Array]:
    """Returns what `lax.top_k` does, with 0.0 equal to -0.0; slower on TPU alone.

    Each round compares the maxima of groups, takes the largest, and recomputes the
    maximum of its group. Scores are taken in falling order, ties by index, so those
    already taken are known by comparison with the last one. (32 of 1,024 scores,
    32,768 rows: 57 ms against 246 on two cores, 0.73 against 1.53 on an H100.)
    """
    *batch, width = scores.shape
    rows = scores.reshape(-1, width)
    padding = -width % GROUP_SIZE
    rows = jnp.pad(rows, ((0, 0), (0, padding)), constant_values=-jnp.inf)
    groups = rows.reshape(len(rows), rows.shape[1] // GROUP_SIZE, GROUP_SIZE)
    group_numbers = jnp.arange(groups.shape[1])[None]
    offsets = jnp.arange(GROUP_SIZE)[None]

    def take_one(state, _):
        maxima, last, last_index = state
        best = maxima.max(-1, keepdims=True)
        is_best = maxima == best
        group = jnp.where(is_best, group_numbers, group_numbers.size - 1).min(-1)
        members = groups.at[jnp.arange(len(groups)), group].get(
            mode="promise_in_bounds"
        )
        group = group[:, None]
        indices = group * GROUP_SIZE + offsets

        def is_after(score, index):
            return (members < score) | ((members == score) & (indices > index))

        is_best = (members == best) & is_after(last, last_index)
        # Without a best one, as among NaN, the index must exist all the same.
        index = jnp.where(is_best, indices, width - 1).min(-1, keepdims=True)
        rest = jnp.where(is_after(best, index), members, -jnp.inf)
        maximum = rest.max(-1, keepdims=True)
        maxima = jnp.where(group_numbers == group, maximum, maxima)
        return (maxima, best, index), (best[:, 0], index[:, 0])

    maxima = groups.max(-1)
    last = jnp.full_like(maxima[:, :1], jnp.inf)
    state = (maxima, last, jnp.full_like(last, -1, group_numbers.dtype))
    _, taken = jax.lax.scan(take_one, state, length=top_k)
    best, indices = (leaf.T.reshape(*batch, top_k) for leaf in taken)
    return best, indices


# Candidates are not sorted by slot, so `lax.top_k` would break ties otherwise.
def _best_by_rounds(scores: Array, slots: Array, top_k: int) -> Array:
    """Takes the best candidate top_k times, which is faster than sorting on a CPU."""
    numbers = jax.lax.broadcasted_iota(slots.dtype, slots.shape, slots.ndim - 1)
    largest = jnp.iinfo(slots.dtype).max

    def take_best(scores, _):
        tied = scores == scores.max(-1, keepdims=True)
        best = jnp.where(tied, slots, largest).min(-1, keepdims=True)
        taken = slots == best  # nowhere among NaN: then the first, also NaN
        return jnp.where(taken, -jnp.inf, scores), jnp.where(taken, numbers, 0).sum(-1)

    _, best = jax.lax.scan(take_best, scores, length=top_k)
    return jnp.moveaxis(best, 0, -1)


def _best_by_sorting(scores: Array, slots: Array, top_k: int) -> Array:
    """Sorts candidates, one program on a GPU. (0.11 ms against 0.76 on an H100.)"""
    numbers = jax.lax.broadcasted_iota(slots.dtype, slots.shape, slots.ndim - 1)
    descending = jnp.where(jnp.isnan(scores), -jnp.inf, -scores)  # NaN shows up first
    return jax.lax.sort((descending, slots, numbers), num_keys=2)[2][..., :top_k]


# The best half-keys, and the best pairs of them
ALGORITHMS = {
    "cpu": (_largest_by_groups, _best_by_rounds),
    "gpu": (_largest_by_groups, _best_by_sorting),
    "tpu": (jax.lax.top_k, _best_by_rounds),
}
