"""The SMF step computed densely: the gradient of all rows, then a mask."""

import numpy as np

from tests.reference import tfidf


def step(table, gradient, reads, is_token, background, top_t, learning_rate):
    """Returns the selected slots and the table after one step of SGD on them.

    Args:
      table: [num_slots, value_dim].
      gradient: Of the whole table.
      reads: Slots [batch, seq, reads] of each layer that reads this table.
      is_token: [batch, seq]; other reads do not count.
      background: Document frequency of each slot, and the number of documents.
      top_t: Slots to select.
      learning_rate: Of SGD.
    """
    counts = sum(tfidf.count_reads(slots, is_token, len(table)) for slots in reads)
    selected = tfidf.top_slots(tfidf.tfidf(counts, *background), top_t)
    mask = np.zeros((len(table), 1))
    mask[selected] = 1
    return selected, table - learning_rate * mask * np.asarray(gradient, np.float64)
