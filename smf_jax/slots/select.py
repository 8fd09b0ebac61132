"""Which slots a batch may write: TF-IDF and its rivals, all of one signature.

Each rival maps (counts, document_frequency, num_documents) to scores of 0 or more,
and 0 means "never". What they share: a slot that the batch did not read scores 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from smf_jax.config import Selector
from smf_jax.sharding import BATCH, ONE_DEVICE, MeshLayout

Score = Callable[[Array, Array, int | Array], Array]


def count_reads(
    slots: Int[Array, "*batch reads"],
    is_token: Bool[Array, "*batch"],
    num_slots: int,
    layout: MeshLayout = ONE_DEVICE,
) -> Int[Array, " num_slots"]:
    """Returns how often each slot was read by tokens; padding counts nothing.

    On a mesh tokens are [..., batch, seq], and counts are split as slots are.
    """
    ones = jnp.broadcast_to(is_token[..., None], slots.shape).astype(jnp.int32)

    def local(slots, ones):
        counts = jnp.zeros(num_slots, jnp.int32).at[slots].add(ones, mode="drop")
        if layout.mesh is None:
            return counts
        if BATCH[0] not in layout.row_axes:
            counts = jax.lax.psum(counts, BATCH)
        else:
            counts = jax.lax.psum_scatter(counts, BATCH, tiled=True)
        if "model" not in layout.row_axes:
            return counts
        held = len(counts) // layout.axis_size("model")
        first = jax.lax.axis_index("model") * held
        return jax.lax.dynamic_slice_in_dim(counts, first, held)

    tokens = PartitionSpec(*(None,) * (slots.ndim - 3), BATCH)
    split = PartitionSpec(layout.row_axes or None)
    return layout.shard_map(local, (tokens, tokens), split)(slots, ones)


def tfidf(
    counts: Int[Array, " num_slots"],
    document_frequency: Int[Array, " num_slots"],
    num_documents: int | Int[Array, ""],
) -> Float[Array, " num_slots"]:
    """Scores how far a batch's reads of each slot stand out from the background.

        counts[i] / sum(counts) * log((num_documents + 1) / (document_frequency[i] + 1))

    A "document" is one background batch, as in the paper.

    Args:
      counts: Reads of each slot by this batch.
      document_frequency: Background batches that read the slot at least once.
      num_documents: Background batches in all.

    Returns:
      Scores in nats, 0 or more: 0 for a slot this batch did not read, and for one
      that every background batch reads.

    Source: Lin et al. 2025, arXiv:2510.15103.
    """
    return tf(counts, document_frequency, num_documents) * _inverse_frequency(
        document_frequency, num_documents
    )


def _inverse_frequency(document_frequency, num_documents):
    return jnp.log((num_documents + 1) / (document_frequency + 1))


def tf(counts: Array, document_frequency: Array, num_documents: int | Array) -> Array:
    """Scores each slot by its share of the batch's reads."""
    del document_frequency, num_documents
    return counts / jnp.maximum(counts.sum(), 1)


def idf(counts: Array, document_frequency: Array, num_documents: int | Array) -> Array:
    """Scores each slot that was read by how rare it is in the background."""
    rarity = _inverse_frequency(document_frequency, num_documents)
    return jnp.where(counts > 0, rarity, 0)


def random(
    counts: Array, document_frequency: Array, num_documents: int | Array
) -> Array:
    """Scores the slots that were read at random: a control.

    The draw depends on `counts` alone, so that it differs from batch to batch and
    is the same on every host.
    """
    del document_frequency, num_documents
    odd = 2 * jnp.arange(len(counts), dtype=jnp.uint32) + 1
    seed = jnp.sum(counts.astype(jnp.uint32) * odd, dtype=jnp.uint32)
    draws = jax.random.uniform(jax.random.key(seed), counts.shape, minval=1, maxval=2)
    return jnp.where(counts > 0, draws, 0)


def all_read(
    counts: Array, document_frequency: Array, num_documents: int | Array
) -> Array:
    """Scores every slot that was read alike: a control, with top_t = num_slots."""
    del document_frequency, num_documents
    return (counts > 0).astype(jnp.float32)


def kl(counts: Array, document_frequency: Array, num_documents: int | Array) -> Array:
    """Scores each slot by its term of KL(batch || background), where above 0.

        p[i] * log(p[i] / q[i])

    p is the batch's share of reads and q the background's share of document
    frequency, each count raised by 1 so that q is never 0.

    Source: Goyal et al. 2026, arXiv:2604.05248.
    """
    del num_documents
    p = counts / jnp.maximum(counts.sum(), 1)
    smoothed = document_frequency + 1.0
    q = smoothed / smoothed.sum()
    terms = p * jnp.log(jnp.where(counts > 0, p, 1) / q)
    return jnp.where(counts > 0, jnp.maximum(terms, 0), 0)


def scorer(name: Selector) -> Score:
    """Returns the function that a configuration names."""
    match name:
        case "tfidf":
            return tfidf
        case "tf":
            return tf
        case "idf":
            return idf
        case "random":
            return random
        case "all":
            return all_read
        case "kl":
            return kl


def top_slots(
    scores: Float[Array, " num_slots"],
    top_t: int,
    layout: MeshLayout = ONE_DEVICE,
) -> Int[Array, " top_t"]:
    """Returns the slots of highest score, best first, ties to the lower slot.

    Where fewer than `top_t` score above 0, the rest are ids from num_slots on, all
    different, which stand for no slot: row writes drop them. On a mesh scores are
    split as slots are: each device ranks its own, and all rank the best of each.
    """

    def local(scores):
        best, slots = jax.lax.top_k(scores, min(top_t, len(scores)))
        axes = layout.row_axes
        if layout.mesh is None or not axes:
            return best, slots
        slots = slots + jax.lax.axis_index(axes) * len(scores)
        # In the order of the devices, so of slots: ties still go to the lower one.
        best, slots = (
            jax.lax.all_gather(leaf, axes, tiled=True) for leaf in (best, slots)
        )
        best, places = jax.lax.top_k(best, top_t)
        return best, slots[places]

    everywhere = PartitionSpec()
    split = PartitionSpec(layout.row_axes or None)
    best, slots = layout.shard_map(local, (split,), (everywhere,) * 2)(scores)
    nothing = len(scores) + jnp.arange(top_t, dtype=slots.dtype)
    return jnp.where(best > 0, slots, nothing)
