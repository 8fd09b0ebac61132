"""Finetuning methods as values: which parameters, which optimizer, which rows."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jaxtyping import PyTree

from smf_jax.config import OptimConfig
from smf_jax.model.lora import LoRAParam
from smf_jax.model.memory import MemoryValues
from smf_jax.optim.muon import muon
from smf_jax.slots.select import Score, scorer

ADAM_B2 = 0.95  # as large language models are trained; 0.999 averages a whole demo


def _is_memory_param(path: tuple, leaf: Any) -> bool:
    return not {"memory", "memory_scale", "values"}.isdisjoint(path)


# The trainable parameters of a method, as a filter of `nnx.split`; all others are
# frozen.
TRAINABLE = {
    "full": nnx.Param,
    "lora": LoRAParam,
    "smf": MemoryValues,
    "memory": _is_memory_param,
}


class Method(NamedTuple):
    """What a training step needs to know of a method; it never asks for its name."""

    trainable: type[nnx.Param] | Callable[[tuple, Any], bool]  # one of TRAINABLE
    tx: optax.GradientTransformationExtraArgs
    score: Score | None  # ranks slots; None: whole parameters are updated
    top_t: int  # slots written a step and table, where there is a score
    max_grad_norm: float | None = None  # of the gradient of trainable parameters


def make_method(
    config: OptimConfig, steps: int, values_lr_scale: float = 1.0
) -> Method:
    """Returns the method that a configuration names, for a run of so many steps."""
    trainable, max_norm = TRAINABLE[config.method], config.max_grad_norm
    tx = optimizer(config, steps, values_lr_scale)
    if config.method == "smf":
        return Method(trainable, tx, scorer(config.select), config.top_t, max_norm)
    return Method(trainable, tx, None, 0, max_norm)


def optimizer(
    config: OptimConfig, steps: int, values_lr_scale: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Returns SGD, AdamW or Muon on the schedule.

    Updates of memory tables are multiplied by `values_lr_scale`: few tokens read each
    row, and it has to learn from them. Tables decay only where rows are selected.

    Source: Lample et al. 2019, arXiv:1907.05242, for a learning rate of the values.
    """
    tx = _optimizer(config, steps)
    if values_lr_scale != 1:
        tx = optax.chain(tx, _scale_values(values_lr_scale))
    return optax.with_extra_args_support(tx)


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate of each of `steps` steps."""
    peak, end = config.learning_rate, config.learning_rate * config.end_lr_fraction
    decay_steps = steps - config.warmup_steps
    match config.schedule:
        case "constant":
            after = optax.constant_schedule(peak)
        case "linear":
            after = optax.linear_schedule(peak, end, decay_steps)
        case "cosine":
            after = optax.cosine_decay_schedule(
                peak, decay_steps, config.end_lr_fraction
            )
    if config.warmup_steps == 0:
        return after
    # Above 0 at the first step, which would be wasted otherwise.
    warmup = optax.linear_schedule(
        peak / config.warmup_steps, peak, config.warmup_steps - 1
    )
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def _optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    rate, decay = schedule(config, steps), config.weight_decay
    mask = functools.partial(_decay_mask, tables=config.method == "smf")
    match config.optimizer:
        case "sgd":
            return optax.sgd(rate)
        case "adamw":
            return optax.adamw(rate, b2=ADAM_B2, weight_decay=decay, mask=mask)
        case "muon":
            return muon(rate, decay, mask, ADAM_B2)


def _decay_mask(params: PyTree, tables: bool) -> PyTree:
    # Norm scales and biases are vectors, and decay would not regularize them. Most rows
    # of a table are not read in a step, and would fade.
    def decays(path, leaf):
        return leaf.ndim > 1 and (tables or not is_table(path))

    return jax.tree.map_with_path(decays, params)


def map_state(
    tx: optax.GradientTransformation,
    of_param: Callable[..., Any],
    state: optax.OptState,
    *params: PyTree,
    otherwise: Callable[[Any], Any],
) -> PyTree:
    """Maps over an optimizer's state, parameter by parameter.

    `of_param` is given a leaf of the state that belongs to a parameter, and that
    parameter's leaves of `params`; `otherwise` maps state shared by all parameters.
    """

    def is_masked(leaf):  # as with Muon, which leaves some parameters to Adam
        return isinstance(leaf, optax.MaskedNode)

    return optax.tree.map_params(
        tx,
        lambda leaf, *of: leaf if is_masked(leaf) else of_param(leaf, *of),
        state,
        *params,
        transform_non_params=otherwise,
        is_leaf=is_masked,
    )


def is_table(path: tuple) -> bool:
    """Returns whether a parameter is a memory's value table, given its JAX key path."""
    return getattr(path[0], "key", None) == "values"


def _scale_values(rate: float) -> optax.GradientTransformation:
    def scale(path, leaf):
        return rate * leaf if is_table(path) else leaf

    return optax.stateless(lambda updates, _: jax.tree.map_with_path(scale, updates))
