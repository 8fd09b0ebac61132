"""Which facts of a batch are still to be learned: answered ones leave the step."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from smf_jax.data.batches import Batch


def is_open(
    batch: Batch, losses: Float[Array, "batch some"], threshold: float
) -> Bool[Array, " batch"]:
    """Returns which rows are of facts of which a token has a loss above `threshold`.

    All rows of a fact are in the batch, and a row holds examples of one fact. `losses`
    are those of tokens that are trained on, and 0 elsewhere, in nats.

    >>> import numpy as np
    >>> zeros = np.zeros((4, 1), np.int32)
    >>> records = np.array([[5], [5], [6], [0]])
    >>> segments = np.array([[1], [1], [1], [0]])  # the last row is padding
    >>> batch = Batch(zeros, zeros, zeros, zeros, segments, records)
    >>> losses = jnp.array([[0.1], [2.0], [0.1], [0.0]])
    >>> is_open(batch, losses, 0.3).tolist()
    [True, True, False, False]
    """
    is_token = batch.segments > 0
    fact = jnp.where(is_token, batch.records, -1).max(1)
    of_same = fact[:, None] == fact[None]
    worst = jnp.where(of_same, losses.max(1)[None], 0).max(1)
    return (worst > threshold) & is_token.any(1)
