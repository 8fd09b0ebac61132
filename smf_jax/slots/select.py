"""Selection of the slots that a batch may write: TF-IDF and its alternatives.

Each maps the counts of a batch and the fields of a `Background`, of one table, to
scores of 0 or more. A slot that scores 0, as one that the batch did not read does, is
never selected.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from smf_jax.config import Selector
from smf_jax.kernels.sharded import token_spec
from smf_jax.sharding import BATCH, ONE_DEVICE, MeshLayout

Score = Callable[..., Array]


def count_reads(
    slots: Int[Array, "*batch reads"],
    is_token: Bool[Array, "*batch"],
    num_slots: int,
    layout: MeshLayout = ONE_DEVICE,
) -> Int[Array, " num_slots"]:
    """Returns how often tokens read each slot, padding excluded.

    On a mesh, tokens are [..., batch, seq], and counts are split as slots are.

    >>> slots = jnp.array([[0, 2], [2, 3], [1, 1]])
    >>> count_reads(slots, jnp.array([True, True, False]), num_slots=4).tolist()
    [1, 0, 2, 1]
    """
    ones = jnp.broadcast_to(is_token[..., None], slots.shape).astype(jnp.int32)

    def local(slots, ones):
        counts = jnp.zeros(num_slots, jnp.int32).at[slots].add(ones, mode="drop")
        if layout.batch_row_axes:
            counts = layout.scatter(counts, BATCH, 0)
        else:
            counts = layout.psum(counts, BATCH)
        if not layout.model_row_axes:
            return counts
        size = len(counts) // layout.axis_size("model")
        start = jax.lax.axis_index("model") * size
        return jax.lax.dynamic_slice_in_dim(counts, start, size)

    tokens = token_spec(slots)
    split = PartitionSpec(layout.row_axes or None)
    return layout.shard_map(local, (tokens, tokens), split)(slots, ones)


def tfidf(
    counts: Int[Array, " num_slots"],
    document_frequency: Int[Array, " num_slots"],
    num_documents: int | Int[Array, ""],
    *_facts: Array | int | None,
) -> Float[Array, " num_slots"]:
    """Scores how specific each slot's reads are to the batch.

        counts[i] / sum(counts) * log((num_documents + 1) / (document_frequency[i] + 1))

    A "document" is one background batch, as in the paper. Scores are in nats.

    >>> counts, frequency = jnp.array([2, 2, 0]), jnp.array([100, 0, 0])
    >>> tfidf(counts, frequency, num_documents=100)  # log(101) / 2
    Array([0.       , 2.3075602, 0.       ], dtype=float32)

    Source: Lin et al. 2025, arXiv:2510.15103.
    """
    return tf(counts) * idf(counts, document_frequency, num_documents)


def contrastive(
    counts: Int[Array, " num_slots"],
    document_frequency: Int[Array, " num_slots"],
    num_documents: int | Int[Array, ""],
    fact_frequency: Int[Array, " num_slots"],
    num_facts: int | Int[Array, ""],
    rarity: float,
    contrast: float,
) -> Float[Array, " num_slots"]:
    """Scores how specific each slot's reads are to a batch of the taught facts.

        counts[i] / sum(counts)
            * log((num_documents + 1) / (document_frequency[i] + 1)) ** rarity
            * (log((num_facts + 1) / (fact_frequency[i] + 1)) /
               log((num_facts + 1) / 2)) ** contrast

    The last factor is 1 for a slot that one fact reads, and 0 for one that all of them
    do: words that taught facts share are also those of facts to be kept.

    >>> counts, none = jnp.array([1, 1]), jnp.zeros(2, int)
    >>> contrastive(counts, none, 7, jnp.array([1, 3]), 7, rarity=1.0, contrast=1.0)
    Array([1.0397208, 0.5198604], dtype=float32)
    """
    in_text = idf(counts, document_frequency, num_documents) ** rarity
    share = jnp.log((num_facts + 1) / (fact_frequency + 1))
    share = share / jnp.log((num_facts + 1) / 2)
    specific = jnp.clip(jnp.where(num_facts > 1, share, 1), 0, 1)
    return tf(counts) * in_text * specific**contrast


def tf(counts: Array, *_background: Array | int | None) -> Array:
    """Scores each slot by its share of the batch's reads."""
    return counts / jnp.maximum(counts.sum(), 1)


def idf(
    counts: Array,
    document_frequency: Array,
    num_documents: Array | int,
    *_facts: Array | int | None,
) -> Array:
    """Scores each slot that was read by its rarity in the background."""
    rarity = jnp.log((num_documents + 1) / (document_frequency + 1))
    return jnp.where(counts > 0, rarity, 0)


def random(counts: Array, *_background: Array | int | None) -> Array:
    """Scores the slots that were read at random, as a control.

    The seed is computed from `counts`, so it differs from batch to batch and is the
    same on every host.
    """
    odd = 2 * jnp.arange(len(counts), dtype=jnp.uint32) + 1
    seed = jnp.sum(counts.astype(jnp.uint32) * odd, dtype=jnp.uint32)
    draws = jax.random.uniform(jax.random.key(seed), counts.shape, minval=1, maxval=2)
    return jnp.where(counts > 0, draws, 0)


def all_read(counts: Array, *_background: Array | int | None) -> Array:
    """Scores all slots that were read alike: a control, with top_t = num_slots."""
    return (counts > 0).astype(jnp.float32)


def kl(counts: Array, document_frequency: Array, *_rest: int | Array | None) -> Array:
    """Scores each slot by its term of KL(batch || background), where above 0.

        p[i] * log(p[i] / q[i])

    p is the batch's share of reads and q the background's share of document
    frequency, each count raised by 1 so that q is never 0.

    Source: Goyal et al. 2026, arXiv:2604.05248.
    """
    p = tf(counts)
    smoothed = document_frequency + 1.0
    q = smoothed / smoothed.sum()
    terms = p * jnp.log(jnp.where(counts > 0, p, 1) / q)
    return jnp.where(counts > 0, jnp.maximum(terms, 0), 0)


SCORERS: dict[Selector, Score] = {
    "tfidf": tfidf,
    "tf": tf,
    "idf": idf,
    "random": random,
    "all": all_read,
    "kl": kl,
    "contrastive": contrastive,
}


def top_slots(
    scores: Float[Array, " num_slots"], top_t: int, layout: MeshLayout = ONE_DEVICE
) -> Int[Array, " top_t"]:
    """Returns the slots with the highest scores, best first, ties to the lower slot.

    If fewer than `top_t` score above 0, the rest is padding: different ids of num_slots
    or more, which writes of rows drop. On a mesh, scores are split as slots are: each
    device ranks its own, and then all rank the best of each.

    >>> top_slots(jnp.array([0.5, 0.0, 2.0, 0.0]), top_t=3).tolist()
    [2, 0, 6]

    Raises:
      ValueError: There are fewer than `top_t` slots.
    """
    if top_t > len(scores):
        raise ValueError(f"top_t={top_t} exceeds the {len(scores)} slots of the table")

    def local(scores):
        best, slots = jax.lax.top_k(scores, min(top_t, len(scores)))
        if not layout.row_axes:
            return best, slots
        slots = slots + jax.lax.axis_index(layout.row_axes) * len(scores)
        # In the order of devices, and so of slots: ties still go to the lower one.
        best, slots = (
            layout.gather(leaf, layout.row_axes, 0) for leaf in (best, slots)
        )
        best, index = jax.lax.top_k(best, top_t)
        return best, slots[index]

    split = PartitionSpec(layout.row_axes or None)
    best, slots = layout.shard_map(local, (split,), PartitionSpec())(scores)
    padding = len(scores) + jnp.arange(top_t, dtype=slots.dtype)
    return jnp.where(best > 0, slots, padding)
