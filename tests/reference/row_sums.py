"""Weighted sums of table rows and their gradients by loops, in float64."""

import numpy as np


def _numbers(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def weighted_rows(values, slots, weights):
    """Returns sum over reads of weights * values[slots], [*batch, value_dim]."""
    values, weights = _numbers(values, weights)
    slots = np.asarray(slots)
    out = np.zeros((*slots.shape[:-1], values.shape[1]))
    for *token, read in np.ndindex(*slots.shape):
        at = (*token, read)
        out[tuple(token)] += weights[at] * values[slots[at]]
    return out


def values_gradient(cotangent, slots, weights, num_slots):
    """Returns the gradient of the whole table, [num_slots, value_dim]."""
    cotangent, weights = _numbers(cotangent, weights)
    slots = np.asarray(slots)
    gradient = np.zeros((num_slots, cotangent.shape[-1]))
    for *token, read in np.ndindex(*slots.shape):
        at = (*token, read)
        gradient[slots[at]] += weights[at] * cotangent[tuple(token)]
    return gradient


def weights_gradient(cotangent, slots, values):
    """Returns the gradient of the weights, [*batch, reads]."""
    cotangent, values = _numbers(cotangent, values)
    slots = np.asarray(slots)
    gradient = np.zeros(slots.shape)
    for *token, read in np.ndindex(*slots.shape):
        at = (*token, read)
        gradient[at] = values[slots[at]] @ cotangent[tuple(token)]
    return gradient
