"""The exact best of n * n product keys, without scoring all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

SCORES_PER_BLOCK = 2**22  # 16 MiB
GROUP = 16  # scores of which the best is kept: 64 groups of 16 cost least of 1,024


def candidate_pairs(top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ranks (i, j) of the two halves that can make one of the best pairs.

    The pair of ranks (i, j) is beaten by every pair of smaller ranks, of which there
    are (i + 1) * (j + 1) - 1, so it is out once that makes top_k: about
    top_k * log(top_k) of the top_k**2 pairs stay.
    """
    first, second = np.indices((top_k, top_k))
    return np.nonzero((first + 1) * (second + 1) <= top_k)


def product_key_top_k(
    query: Float[Array, "*batch heads 2 half"],
    keys: Float[Array, "heads 2 num_keys half"],
    top_k: int,
) -> tuple[Int[Array, "*batch heads top_k"], Float[Array, "*batch heads top_k"]]:
    """Returns the slots whose keys score highest, best first, and their scores.

    Slot a * num_keys + b has the key (keys[0, a], keys[1, b]), and its score is the
    sum of the two dot products, so the best pairs lie among the best of each half.
    Equal scores go to the lower slot; where pairs that are equal on paper differ in
    the last bit of their float32 sums, the sums decide. Scores carry the gradient.

    Source: Lample et al. 2019, arXiv:1907.05242.
    """
    *batch, heads, pair, half = query.shape
    flat = query.reshape(-1, heads, pair, half)
    slots, scores = jax.lax.platform_dependent(
        flat,
        keys,
        cpu=functools.partial(_rank_blocks, top_k=top_k),
        default=functools.partial(_rank, largest=jax.lax.top_k, top_k=top_k),
    )
    shape = (*batch, heads, top_k)
    return slots.reshape(shape), scores.reshape(shape)


def _rank_blocks(query, keys, top_k):
    """Ranks so many tokens at a time that their scores stay in a CPU's cache."""
    tokens, (heads, pair, num_keys, _) = len(query), keys.shape
    blocks = -(-tokens * heads * pair * num_keys // SCORES_PER_BLOCK)
    blocks = max(1, min(tokens, blocks))
    size = -(-tokens // blocks)
    query = jnp.pad(query, ((0, blocks * size - tokens), *[(0, 0)] * 3))
    found = jax.lax.map(
        lambda query: _rank(query, keys, _largest_by_groups, top_k),
        query.reshape(blocks, size, *query.shape[1:]),
    )
    return tuple(leaf.reshape(-1, heads, top_k)[:tokens] for leaf in found)


def _rank(query, keys, largest, top_k):
    num_keys = keys.shape[2]
    # Accelerators would else round what they multiply, and other slots would be read.
    halves = jnp.einsum(
        "thpc,hpnc->hptn",  # transposed, it would take a CPU twice as long
        query,
        keys,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    best, ids = largest(jax.lax.stop_gradient(halves), top_k)
    first, second = candidate_pairs(top_k)
    slots = _best_pairs(
        best[:, 0][..., first] + best[:, 1][..., second],
        ids[:, 0][..., first] * num_keys + ids[:, 1][..., second],
        top_k,
        num_keys**2,
    )
    take = functools.partial(jnp.take_along_axis, axis=-1, mode="promise_in_bounds")
    scores = take(halves[:, 0], slots // num_keys)
    scores += take(halves[:, 1], slots % num_keys)
    # NaN is no best pair. Where there is one, it came first among a half's best.
    has_nan = jnp.isnan(best[..., :1]).any(1)
    scores = jnp.where(has_nan, jnp.nan, scores)
    return slots.swapaxes(0, 1), scores.swapaxes(0, 1)


def _largest_by_groups(
    scores: Float[Array, "*batch n"], top_k: int
) -> tuple[Float[Array, "*batch top_k"], Int[Array, "*batch top_k"]]:
    """Does what `lax.top_k` does, 0.0 and -0.0 being equal, and on a CPU faster.

    Only the best of each group is compared with those of others; once it is taken, its
    group is read again. Scores are taken in falling order, ties by place: what was
    taken before is known by comparison with the last one, and need not be marked. (32
    of 1,024 scores, 32,768 rows: 57 ms against 246 on two cores.)
    """
    *batch, width = scores.shape
    rows = scores.reshape(-1, width)
    rows = jnp.pad(rows, ((0, 0), (0, -width % GROUP)), constant_values=-jnp.inf)
    groups = rows.reshape(len(rows), rows.shape[1] // GROUP, GROUP)
    of_group = jnp.arange(groups.shape[1])[None]
    in_group = jnp.arange(GROUP)[None]

    def take_one(state, _):
        maxima, last, last_place = state
        best = maxima.max(-1, keepdims=True)
        group = jnp.where(maxima == best, of_group, of_group.size - 1).min(-1)
        members = groups.at[jnp.arange(len(groups)), group].get(
            mode="promise_in_bounds"
        )
        group = group[:, None]
        places = group * GROUP + in_group

        def follow(score, place):
            return (members < score) | ((members == score) & (places > place))

        is_best = (members == best) & follow(last, last_place)
        # There is one but among numbers that are not finite.
        place = jnp.where(is_best, places, width - 1).min(-1, keepdims=True)
        left = jnp.where(follow(best, place), members, -jnp.inf).max(-1, keepdims=True)
        maxima = jnp.where(of_group == group, left, maxima)
        return (maxima, best, place), (best[:, 0], place[:, 0])

    maxima = groups.max(-1)
    last = jnp.full_like(maxima[:, :1], jnp.inf)
    state = (maxima, last, jnp.full_like(last, -1, of_group.dtype))
    _, taken = jax.lax.scan(take_one, state, length=top_k)
    return tuple(leaf.T.reshape(*batch, top_k) for leaf in taken)


def _best_pairs(scores: Array, slots: Array, top_k: int, num_slots: int) -> Array:
    # Candidates are not in the order of their slots, so lax.top_k would break ties by
    # rank. They are few: taking the best top_k times costs less than a sort of pairs.
    def take_best(scores, _):
        tied = scores == scores.max(-1, keepdims=True)
        best = jnp.where(tied, slots, num_slots - 1).min(-1, keepdims=True)
        return jnp.where(slots == best, -jnp.inf, scores), best[..., 0]

    _, best = jax.lax.scan(take_best, scores, length=top_k)
    return jnp.moveaxis(best, 0, -1)
