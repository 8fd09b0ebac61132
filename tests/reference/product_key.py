"""Product keys by scoring every pair, in float64."""

import numpy as np


def top_k(query, keys, top_k):
    """Returns slots and scores [..., heads, top_k], best first, ties to lower slots.

    Shapes: query [..., heads, 2, half], keys [heads, 2, num_keys, half].
    """
    query, keys = np.asarray(query, np.float64), np.asarray(keys, np.float64)
    num_keys = keys.shape[2]
    slots = np.zeros((*query.shape[:-2], top_k), int)
    scores = np.zeros((*query.shape[:-2], top_k))
    for index in np.ndindex(*query.shape[:-2]):
        head, pairs = index[-1], []
        for a, b in np.ndindex(num_keys, num_keys):
            score = query[index][0] @ keys[head, 0, a]
            score += query[index][1] @ keys[head, 1, b]
            pairs.append((-score, a * num_keys + b))
        best = sorted(pairs)[:top_k]
        slots[index] = [slot for _, slot in best]
        scores[index] = [-score for score, _ in best]
    return slots, scores


def score_gradients(query, keys, slots, cotangent):
    """Returns the gradients of sum(cotangent * scores of slots): query's, keys'."""
    query, keys = np.asarray(query, np.float64), np.asarray(keys, np.float64)
    slots, cotangent = np.asarray(slots), np.asarray(cotangent, np.float64)
    num_keys = keys.shape[2]
    query_gradient, keys_gradient = np.zeros_like(query), np.zeros_like(keys)
    for index in np.ndindex(*slots.shape):
        *token, head, _ = index
        for half, key in enumerate(divmod(slots[index], num_keys)):
            at = (*token, head, half)
            query_gradient[at] += cotangent[index] * keys[head, half, key]
            keys_gradient[head, half, key] += cotangent[index] * query[at]
    return query_gradient, keys_gradient
