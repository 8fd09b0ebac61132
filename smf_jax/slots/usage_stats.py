"""How evenly the slots of a table are read: what a table that was added must show."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

HUB = 100  # times an even share of the reads makes a slot a hub
CROWDED = 0.5  # share of the reads on the top 1 % that calls for a warning


class UsageStats(NamedTuple):
    """How a text reads one table; shares lie between 0 and 1."""

    read: float  # share of the slots that are read at all
    kl_to_uniform: float  # KL(reads || even reads) in nats; 0 is perfectly even
    top_percent: float  # share of the reads on the 1 % of slots that are read most
    dead: int  # slots that are never read
    hubs: int  # slots that take at least HUB times an even share


def usage_stats(counts: Int[np.ndarray, " num_slots"]) -> UsageStats:
    """Returns how evenly slots are read, given how often each of them is.

    How many slots are dead depends on the length of the text: compare equal ones.

    Raises:
      ValueError: Nothing was read.
    """
    total, num_slots = int(counts.sum()), len(counts)
    if total == 0:
        raise ValueError("no slot was read")
    shares = counts[counts > 0] / total
    most = np.sort(counts)[::-1][: max(num_slots // 100, 1)]
    return UsageStats(
        read=float((counts > 0).mean()),
        kl_to_uniform=float(np.log(num_slots) + (shares * np.log(shares)).sum()),
        top_percent=float(most.sum() / total),
        dead=int((counts == 0).sum()),
        hubs=int((counts * num_slots >= HUB * total).sum()),
    )
