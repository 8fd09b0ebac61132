"""The exact best of n * n product keys, without scoring all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from smf_jax.kernels.chunks import in_chunks

SCORES_PER_BLOCK = 2**22  # 16 MiB
EXACT = functools.partial(
    jnp.einsum,
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
)
GROUP = 16  # scores of which the best is kept: 64 groups of 16 cost least of 1,024


def candidate_pairs(top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ranks (i, j) of the two halves that can make one of the best pairs.

    The pair of ranks (i, j) is beaten by every pair of smaller ranks, of which there
    are (i + 1) * (j + 1) - 1, so it is out once that makes top_k: about
    top_k * log(top_k) of the top_k**2 pairs stay.
    """
    first, second = np.indices((top_k, top_k))
    return np.nonzero((first + 1) * (second + 1) <= top_k)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product_key_top_k(
    query: Float[Array, "*batch heads 2 half"],
    keys: Float[Array, "heads 2 num_keys half"],
    top_k: int,
    platform: str,
) -> tuple[Int[Array, "*batch heads top_k"], Float[Array, "*batch heads top_k"]]:
    """Returns the slots whose keys score highest, best first, and their scores.

    Slot a * num_keys + b has the key (keys[0, a], keys[1, b]), and its score is the
    sum of the two dot products, so the best pairs lie among the best of each half.
    Equal scores go to the lower slot; where pairs that are equal on paper differ in
    the last bit of their float32 sums, the sums decide. Scores carry the gradient.
    The platform is one that jax names: cpu, gpu or tpu.

    Source: Lample et al. 2019, arXiv:1907.05242.
    """
    *batch, heads, pair, half = query.shape
    flat = query.reshape(-1, heads, pair, half)
    rank = _rank_blocks if platform == "cpu" else _rank
    slots, scores = rank(flat, keys, top_k, platform)
    shape = (*batch, heads, top_k)
    return slots.reshape(shape), scores.reshape(shape)


def _forward(query, keys, top_k, platform):
    slots, scores = product_key_top_k(query, keys, top_k, platform)
    return (slots, scores), (query, keys, slots)


def _backward(top_k, platform, residuals, cotangents):
    del top_k, platform
    return scores_gradient(*residuals, cotangents[1])


product_key_top_k.defvjp(_forward, _backward)


def scores_gradient(
    query: Float[Array, "*batch heads 2 half"],
    keys: Float[Array, "heads 2 num_keys half"],
    slots: Int[Array, "*batch heads top_k"],
    cotangent: Float[Array, "*batch heads top_k"],
) -> tuple[Float[Array, "*batch heads 2 half"], Float[Array, "heads 2 num_keys half"]]:
    """Returns the gradients that scores of slots give queries and keys.

    A score is a sum of two dot products, whatever the others are: how slots were found
    does not matter.
    """
    heads, pair, num_keys, half = keys.shape
    tokens = slots.size // (heads * slots.shape[-1])

    def add_block(of_keys, block):
        query, slots, cotangent = block  # [tokens, heads, ...] of a block
        places = jnp.stack([slots // num_keys, slots % num_keys])
        weights = jnp.broadcast_to(cotangent, places.shape)
        places, weights = (jnp.moveaxis(leaf, 2, 0) for leaf in (places, weights))
        row = jnp.arange(places[..., 0].size)[:, None]
        mix = jnp.zeros((row.size, num_keys), jnp.float32)
        mix = mix.at[row, places.reshape(row.size, -1)].add(
            weights.reshape(row.size, -1), mode="promise_in_bounds"
        )
        mix = mix.reshape(heads, pair, -1, num_keys)
        of_query = EXACT("hptn,hpnc->thpc", mix, keys)
        return of_keys + EXACT("hptn,thpc->hpnc", mix, query), of_query

    blocks = [
        in_chunks(leaf.reshape(tokens, *shape), _tokens_of_block(tokens, keys))
        for leaf, *shape in (
            (query, heads, pair, half),
            (slots, heads, slots.shape[-1]),
            (cotangent, heads, slots.shape[-1]),
        )
    ]
    start = jnp.zeros(keys.shape, jnp.float32)
    of_keys, of_query = jax.lax.scan(add_block, start, blocks)
    of_query = of_query.reshape(-1, heads, pair, half)[:tokens].reshape(query.shape)
    return of_query.astype(query.dtype), of_keys.astype(keys.dtype)


def _tokens_of_block(tokens: int, keys: Array) -> int:
    scores = tokens * (keys.size // keys.shape[-1])
    blocks = max(1, -(-scores // SCORES_PER_BLOCK))
    return -(-tokens // blocks)  # as many in each


def _rank_blocks(query, keys, top_k, platform):
    """Ranks so many tokens at a time that their scores stay in a CPU's cache."""
    tokens, heads = len(query), len(keys)
    found = jax.lax.map(
        lambda query: _rank(query, keys, top_k, platform),
        in_chunks(query, _tokens_of_block(tokens, keys)),
    )
    return tuple(leaf.reshape(-1, heads, top_k)[:tokens] for leaf in found)


def _rank(query, keys, top_k, platform):
    largest, best = WAYS[platform]
    num_keys = keys.shape[2]
    # Accelerators would else round what they multiply, and other slots would be read.
    # Transposed, it would take a CPU twice as long.
    halves = EXACT("thpc,hpnc->hptn", query, keys)
    of_halves, ids = largest(halves, top_k)
    first, second = candidate_pairs(top_k)
    scores = of_halves[:, 0][..., first] + of_halves[:, 1][..., second]
    slots = ids[:, 0][..., first] * num_keys + ids[:, 1][..., second]
    chosen = best(scores, slots, top_k)
    return _take(slots, chosen).swapaxes(0, 1), _take(scores, chosen).swapaxes(0, 1)


def _largest_by_groups(
    scores: Float[Array, "*batch n"], top_k: int
) -> tuple[Float[Array, "*batch top_k"], Int[Array, "*batch top_k"]]:
    """Does what `lax.top_k` does, 0.0 and -0.0 being equal, and faster but on TPU.

    Only the best of each group is compared with those of others; once it is taken, its
    group is read again. Scores are taken in falling order, ties by place: what was
    taken before is known by comparison with the last one, and need not be marked. (32
    of 1,024 scores, 32,768 rows: 57 ms against 246 on two cores, 0.73 against 1.53 on
    an H100.)
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
    best, places = (leaf.T.reshape(*batch, top_k) for leaf in taken)
    return best, places


# Candidates are not in the order of their slots, so lax.top_k would break ties by rank.


def _best_in_turn(scores: Array, slots: Array, top_k: int) -> Array:
    # They are few: on a CPU to take the best top_k times costs less than to sort pairs.
    number = jax.lax.broadcasted_iota(slots.dtype, slots.shape, slots.ndim - 1)
    none = jnp.iinfo(slots.dtype).max

    def take_best(scores, _):
        tied = scores == scores.max(-1, keepdims=True)
        best = jnp.where(tied, slots, none).min(-1, keepdims=True)
        taken = slots == best  # none, where scores are NaN: the first, which is, too
        return jnp.where(taken, -jnp.inf, scores), jnp.where(taken, number, 0).sum(-1)

    _, chosen = jax.lax.scan(take_best, scores, length=top_k)
    return jnp.moveaxis(chosen, 0, -1)


def _best_sorted(scores: Array, slots: Array, top_k: int) -> Array:
    # On a GPU every round is several programs. (0.11 ms against 0.76 on an H100.)
    number = jax.lax.broadcasted_iota(slots.dtype, slots.shape, slots.ndim - 1)
    falling = jnp.where(jnp.isnan(scores), -jnp.inf, -scores)  # what is wrong shows
    return jax.lax.sort((falling, slots, number), num_keys=2)[2][..., :top_k]


def _take(array: Array, places: Array) -> Array:
    return jnp.take_along_axis(array, places, -1, mode="promise_in_bounds")


# How a platform finds the largest scores of halves, and the best candidates of them.
WAYS = {
    "cpu": (_largest_by_groups, _best_in_turn),
    "gpu": (_largest_by_groups, _best_sorted),
    "tpu": (jax.lax.top_k, _best_in_turn),
}
