"""A product-key memory layer in float64."""

import numpy as np

from tests.reference import product_key, row_sums


def rms_norm(x, scale):
    """Returns x over the root of its mean square, times scale."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def memory(x, values, params, heads, top_k):
    """Returns the layer's output [batch, seq, dim] and the slots [..., heads, top_k].

    `params` maps the names of the layer's parameters to arrays; norms without a
    parameter are not applied.
    """
    params = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    x, values, keys = np.float64(x), np.float64(values), params["keys"]
    query = (x @ params["query/kernel"]).reshape(*x.shape[:2], heads, 2, -1)
    if "query_norm/scale" in params:
        query = rms_norm(query, params["query_norm/scale"])
    if "key_norm/scale" in params:
        keys = rms_norm(keys, params["key_norm/scale"])

    slots, scores = product_key.top_k(query, keys, top_k)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    flat = (*x.shape[:2], -1)
    read = row_sums.weighted_rows(values, slots.reshape(flat), weights.reshape(flat))

    gate = x @ params["gate/kernel"]
    silu = gate / (1 + np.exp(-gate))
    out = (read * silu) @ params["out/kernel"]
    if "relevance/kernel" in params:
        share = x @ params["relevance/kernel"] + params["relevance/bias"]
        out = out / (1 + np.exp(-share))
    return out, slots
