"""Weighted sums of table rows and their gradients by loops, in float64."""

import numpy as np


def weighted_rows(values, slots, weights):
    """Returns sum over reads of weights * values[slots], [*batch, value_dim]."""
    out = np.zeros((*slots.shape[:-1], values.shape[1]))
    for *token, read in np.ndindex(*slots.shape):
        at = (*token, read)
        out[tuple(token)] += float(weights[at]) * values[slots[at]].astype(np.float64)
    return out


def values_gradient(cotangent, slots, weights, num_slots):
    """Returns the gradient of the whole table, [num_slots, value_dim]."""
    gradient = np.zeros((num_slots, cotangent.shape[-1]))
    for *token, read in np.ndindex(*slots.shape):
        at = (*token, read)
        gradient[slots[at]] += float(weights[at]) * cotangent[tuple(token)]
    return gradient


def weights_gradient(cotangent, slots, values):
    """Returns the gradient of the weights, [*batch, reads]."""
    gradient = np.zeros(slots.shape)
    for *token, read in np.ndindex(*slots.shape):
        at = (*token, read)
        row = values[slots[at]].astype(np.float64)
        gradient[at] = row @ cotangent[tuple(token)].astype(np.float64)
    return gradient
