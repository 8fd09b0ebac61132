"""How evenly the slots of a table are read, which shows whether a new one works."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

HUB = 100  # times an even share of the reads, from which on a slot is a hub
CROWDED = 0.5  # share of the reads on the top 1 % that is worth a warning


class UsageStats(NamedTuple):
    """The reads of one table by a corpus; shares are between 0 and 1."""

    read: float  # share of slots that are read at all
    kl_to_uniform: float  # KL(reads || uniform) in nats; 0 is perfectly even
    top_percent: float  # share of reads on the most read 1 % of slots
    dead: int  # slots that are never read
    hubs: int  # slots with at least HUB times an even share of the reads


def usage_stats(counts: Int[np.ndarray, " num_slots"]) -> UsageStats:
    """Returns how evenly slots are read, given the reads of each.

    Dead slots depend on the length of the corpus: compare equal lengths.

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
