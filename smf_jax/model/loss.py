"""The loss of a batch, its gradient taken piece by piece where logits are many.

Logits, their softmax and their gradient are the largest arrays of a step. The gradient
of a sum of losses is known, up to one factor, as soon as the losses are: it is computed
along with them, and of each piece only sums and the gradient of `hidden` are kept.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from smf_jax.kernels.chunks import in_chunks
from smf_jax.model.transformer import Transformer

# 16 MiB are what a CPU's cache holds. Each piece reads the head again, of which 256 MiB
# of logits on an accelerator make little.
LOGITS_AT_ONCE = {"cpu": 2**22, "gpu": 2**26, "tpu": 2**26}
LEAST_TOKENS = 512  # of a piece: fewer would not keep an accelerator busy


def sum_losses(
    model: Transformer,
    hidden: Float[Array, "batch seq dim"],
    targets: Int[Array, "batch seq"],
    weights: Float[Array, "batch seq"],
) -> Float[Array, ""]:
    """Returns the weighted sum of the cross-entropies of tokens, in nats.

    On a mesh all is one piece: sums over devices would else be taken of each. No
    gradient goes to `weights`.
    """
    logits_of, params = model.head_parts()
    tokens, weights = targets.size, jax.lax.stop_gradient(weights)
    pieces = 1
    if model.layout.mesh is None:
        at_once = LOGITS_AT_ONCE[model.layout.platform]
        many = -(-tokens * model.config.vocab_size // at_once)
        pieces = max(1, min(many, tokens // LEAST_TOKENS))
    if pieces == 1:
        return _sum(logits_of, params, hidden, targets, weights)

    cut = (  # what fills the last piece has weight 0
        in_chunks(leaf.reshape(tokens, *leaf.shape[2:]), -(-tokens // pieces))
        for leaf in (hidden, targets, weights)
    )
    return _sum_pieces(logits_of, params, *cut)


def _sum(logits_of, params, hidden, targets, weights):
    logits = logits_of(params, hidden)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return (losses * weights).sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_pieces(logits_of, params, hidden, targets, weights):
    def add(total, piece):
        return total + _sum(logits_of, params, *piece), None

    return jax.lax.scan(add, jnp.zeros(()), (hidden, targets, weights))[0]


def _forward(logits_of, params, hidden, targets, weights):
    gradient = jax.value_and_grad(functools.partial(_sum, logits_of), (0, 1))

    def add(sums, piece):
        total, (of_params, of_hidden) = gradient(params, *piece)
        return jax.tree.map(jnp.add, sums, (total, of_params)), of_hidden

    # What nobody asks for, as of a head that is frozen, the compiler leaves out.
    start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    (total, of_params), of_hidden = jax.lax.scan(add, start, (hidden, targets, weights))
    return total, (of_params, of_hidden)


def _backward(logits_of, gradients, cotangent):
    of_params, of_hidden = jax.tree.map(
        lambda leaf: (cotangent * leaf).astype(leaf.dtype), gradients
    )
    return of_params, of_hidden, None, None


_sum_pieces.defvjp(_forward, _backward)
