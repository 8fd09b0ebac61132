"""The exact best of n * n product keys, without scoring all of them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


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
    num_keys = keys.shape[2]
    # Accelerators would else round what they multiply, and other slots would be read.
    halves = jnp.einsum(
        "...hpc,hpnc->...hpn",
        query,
        keys,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    best, ids = jax.lax.top_k(halves, top_k)
    first, second = candidate_pairs(top_k)
    scores = best[..., 0, first] + best[..., 1, second]
    slots = ids[..., 0, first] * num_keys + ids[..., 1, second]
    chosen = _best_candidates(jax.lax.stop_gradient(scores), slots, top_k)
    return (
        jnp.take_along_axis(slots, chosen, -1, mode="promise_in_bounds"),
        jnp.take_along_axis(scores, chosen, -1, mode="promise_in_bounds"),
    )


def _best_candidates(scores: Array, slots: Array, top_k: int) -> Array:
    # Candidates are not in the order of their slots, so lax.top_k would break ties by
    # rank. They are few: taking the best top_k times costs less than a sort of pairs.
    none = jnp.iinfo(slots.dtype).max

    def take_best(scores, _):
        tied = scores == scores.max(-1, keepdims=True)
        best = jnp.argmin(jnp.where(tied, slots, none), -1)
        taken = (
            jax.lax.broadcasted_iota(best.dtype, scores.shape, scores.ndim - 1)
            == best[..., None]
        )
        return jnp.where(taken, -jnp.inf, scores), best

    _, chosen = jax.lax.scan(take_best, scores, length=top_k)
    return jnp.moveaxis(chosen, 0, -1)
