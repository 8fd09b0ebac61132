"""The cross-entropy of a batch, in chunks of tokens if it has many logits.

Logits, their softmax and their gradient are the largest arrays of a step. The gradient
of a sum of losses is known up to a factor as soon as the losses are, so the forward
pass computes it, and keeps sums and the gradient of `hidden`, but no logits.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from smf_jax.kernels.chunks import in_chunks
from smf_jax.model.transformer import Transformer

# 16 MiB fit a CPU's cache. Every chunk reads the head again, which takes little time
# beside 256 MiB of logits on an accelerator.
LOGITS_PER_CHUNK = {"cpu": 2**22, "gpu": 2**26, "tpu": 2**26}
MIN_TOKENS = 512  # of a chunk: fewer would not keep an accelerator busy


def sum_losses(
    model: Transformer,
    hidden: Float[Array, "batch seq dim"],
    targets: Int[Array, "batch seq"],
    weights: Float[Array, "batch seq"],
) -> Float[Array, ""]:
    """Returns the weighted sum of the tokens' cross-entropies, in nats.

    On a mesh there is one chunk, as each would take its own sums over devices.
    `weights` get no gradient.
    """
    logits_of, params = model.head_parts()
    tokens, weights = targets.size, jax.lax.stop_gradient(weights)
    chunks = 1
    if model.layout.mesh is None:
        size = LOGITS_PER_CHUNK[model.layout.platform]
        wanted = -(-tokens * model.config.vocab_size // size)
        chunks = max(1, min(wanted, tokens // MIN_TOKENS))
    if chunks == 1:
        return _sum(logits_of, params, hidden, targets, weights)

    arrays = (  # the padding of the last chunk has weight 0
        in_chunks(leaf.reshape(tokens, *leaf.shape[2:]), -(-tokens // chunks))
        for leaf in (hidden, targets, weights)
    )
    return _sum_chunks(logits_of, params, *arrays)


def token_losses(
    model: Transformer,
    hidden: Float[Array, "batch seq dim"],
    targets: Int[Array, "batch seq"],
) -> Float[Array, "batch seq"]:
    """Returns the cross-entropy of each token, in nats, without a gradient."""
    logits_of, params = model.head_parts()
    params = jax.lax.stop_gradient(params)

    def losses(chunk):
        logits = logits_of(params, chunk[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, chunk[1])

    arrays = jax.lax.stop_gradient(hidden), targets
    if model.layout.mesh is not None:
        return losses(arrays)
    flat = [
        in_chunks(a.reshape(targets.size, *a.shape[2:]), MIN_TOKENS) for a in arrays
    ]
    return jax.lax.map(losses, flat).reshape(-1)[: targets.size].reshape(targets.shape)


def _sum(logits_of, params, hidden, targets, weights):
    logits = logits_of(params, hidden)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return (losses * weights).sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_chunks(logits_of, params, hidden, targets, weights):
    def add(total, chunk):
        return total + _sum(logits_of, params, *chunk), None

    return jax.lax.scan(add, jnp.zeros(()), (hidden, targets, weights))[0]


def _forward(logits_of, params, hidden, targets, weights):
    gradient = jax.value_and_grad(functools.partial(_sum, logits_of), (0, 1))

    def add(sums, chunk):
        total, (params_grad, hidden_grad) = gradient(params, *chunk)
        return jax.tree.map(jnp.add, sums, (total, params_grad)), hidden_grad

    # The compiler drops unused gradients, such as that of a frozen head.
    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    sums, hidden_grad = jax.lax.scan(add, zeros, (hidden, targets, weights))
    total, params_grad = sums
    return total, (params_grad, hidden_grad)


def _backward(logits_of, gradients, cotangent):
    params_grad, hidden_grad = jax.tree.map(
        lambda leaf: (cotangent * leaf).astype(leaf.dtype), gradients
    )
    return params_grad, hidden_grad, None, None


_sum_chunks.defvjp(_forward, _backward)
