"""The sparse step the dense way: a whole gradient, of which most rows are masked."""

import numpy as np

from tests.reference import tfidf


def step(table, gradient, reads, is_token, background, top_t, learning_rate):
    """Returns the chosen slots and the table after one step of SGD on them.

    Args:
      table: [num_slots, value_dim].
      gradient: Of the loss with respect to all of the table.
      reads: Slots [batch, seq, reads] of each layer that reads this table.
      is_token: [batch, seq]; reads elsewhere count nothing.
      background: Document frequency of each slot, and the number of documents.
      top_t: Slots to choose.
      learning_rate: Of SGD.
    """
    counts = sum(tfidf.count_reads(slots, is_token, len(table)) for slots in reads)
    chosen = tfidf.top_slots(tfidf.tfidf(counts, *background), top_t)
    mask = np.zeros((len(table), 1))
    mask[chosen] = 1
    return chosen, table - learning_rate * mask * np.asarray(gradient, np.float64)
