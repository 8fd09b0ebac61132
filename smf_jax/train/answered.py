"""Which facts of a batch are still to be learned: answered ones leave the step.

All rows of a fact are in one batch, and a row holds examples of one fact.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smf_jax.data.batches import Batch


class Open(NamedTuple):
    """The facts that are not answered yet."""

    rows: Bool[Array, " batch"]  # the rows of these facts
    facts: Int[Array, ""]  # how many there are


def open_facts(
    batch: Batch, losses: Float[Array, "batch some"], threshold: float
) -> Open:
    """Returns the facts of which some token has a loss of more than `threshold`.

    `losses` are those of tokens that are trained on, and 0 elsewhere, in nats.

    >>> import numpy as np
    >>> zeros, ones = np.zeros((4, 1), np.int32), np.ones((4, 1), np.int32)
    >>> records = np.array([[5], [5], [6], [0]])
    >>> segments = np.array([[1], [1], [1], [0]])  # the last row is padding
    >>> batch = Batch(zeros, zeros, zeros, zeros, segments, records)
    >>> losses = jnp.array([[0.1], [2.0], [0.1], [0.0]])
    >>> still_open = open_facts(batch, losses, 0.3)
    >>> still_open.rows.tolist(), int(still_open.facts)
    ([True, True, False, False], 1)
    """
    is_token = batch.segments > 0
    fact = jnp.where(is_token, batch.records, -1).max(1)
    same = fact[:, None] == fact[None]
    worst = jnp.where(same, losses.max(1)[None], 0).max(1)  # of the row's fact
    rows = (worst > threshold) & is_token.any(1)
    earlier = jnp.tril(same, -1).any(1)
    return Open(rows, (rows & ~earlier).sum())
