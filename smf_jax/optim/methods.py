"""Methods as values: trainable parameters, optimizer, selection of slots.

To add one: a name in `OptimConfig.method`, a filter in `TRAINABLE`, and what is special
about it in `make_method`; the step asks for no name.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jaxtyping import PyTree

from smf_jax.config import MemoryConfig, OptimConfig
from smf_jax.model.calibrated import SlotIds, unit
from smf_jax.model.lora import LoRAParam
from smf_jax.model.memory import MemoryValues
from smf_jax.optim.muon import muon
from smf_jax.slots.select import SCORERS, Score

ADAM_B2 = 0.95  # usual for language models; 0.999 would average over the whole demo


def is_memory_variable(path: tuple, leaf: Any) -> bool:
    """Returns whether a variable is one of a memory; a filter for `nnx.split`."""
    del leaf
    return not {"memory", "memory_scale", "values"}.isdisjoint(path)


def _is_memory_param(path: tuple, leaf: Any) -> bool:
    return is_memory_variable(path, leaf) and not isinstance(leaf, SlotIds)


# The trainable parameters of each method, as a filter for `nnx.split`
TRAINABLE = {
    "full": nnx.Param,
    "lora": LoRAParam,
    "smf": MemoryValues,
    "memory": _is_memory_param,
}


class Method(NamedTuple):
    """What a training step needs to know of a method."""

    trainable: type[nnx.Param] | Callable[[tuple, Any], bool]  # one of TRAINABLE
    tx: optax.GradientTransformationExtraArgs
    score: Score | None  # scores slots; None: whole parameters are updated
    top_t: int  # slots written per step and table, if slots are scored
    max_grad_norm: float | None = None  # None: no clipping
    rows_per_fact: int | None = None  # chosen before the first step; None: top_t
    answered: float = 0.0  # largest token loss (nats) of a fact that leaves a step

    def within(self, memory: MemoryConfig | None) -> "Method":
        """Returns the method for a memory that may have fewer rows than facts own."""
        if self.rows_per_fact is None:
            return self
        return self._replace(top_t=min(self.top_t, memory.table_rows))


def make_method(
    config: OptimConfig,
    steps: int,
    values_lr_scale: float = 1.0,
    facts_per_step: int = 1,
) -> Method:
    """Returns the method of a configuration, for a run of `steps` steps.

    Updates of tables are multiplied by `values_lr_scale`, as few tokens read each row.
    Tables decay only where rows are selected.

    Source: Lample et al. 2019, arXiv:1907.05242, for a learning rate of the values.
    """
    is_smf = config.method == "smf"
    rate, decay = schedule(config, steps), config.weight_decay
    mask = functools.partial(_decay_mask, tables=is_smf)
    match config.optimizer:
        case "sgd":
            tx = optax.sgd(rate)
        case "adamw":
            tx = optax.adamw(rate, b2=ADAM_B2, weight_decay=decay, mask=mask)
        case "muon":
            tx = muon(rate, decay, mask, ADAM_B2)
        case "normalized":
            tx = optax.chain(_unit_rows(), optax.scale_by_learning_rate(rate))
    if values_lr_scale != 1:
        tx = optax.chain(tx, _scale_values(values_lr_scale))
    if not is_smf:
        trains = TRAINABLE[config.method]
        tx = optax.with_extra_args_support(tx)
        return Method(trains, tx, None, 0, config.max_grad_norm)
    score, per_fact = SCORERS[config.select], config.per_fact
    if config.select == "contrastive":
        exponents = {name: getattr(per_fact, name) for name in ("rarity", "contrast")}
        score = functools.partial(score, **exponents)
    return Method(
        TRAINABLE[config.method],
        optax.with_extra_args_support(tx),
        score,
        config.top_t if per_fact.rows is None else per_fact.rows * facts_per_step,
        config.max_grad_norm,
        per_fact.rows,
        per_fact.answered,
    )


def _unit_rows() -> optax.GradientTransformation:
    """Scales each row of a gradient to length 1; zeros stay zeros."""

    def scale(updates, params=None):
        del params
        return jax.tree.map(unit, updates)

    return optax.stateless(scale)


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step."""
    peak, end_fraction = config.learning_rate, config.end_lr_fraction
    decay_steps = steps - config.warmup_steps
    match config.schedule:
        case "constant":
            after = optax.constant_schedule(peak)
        case "linear":
            after = optax.linear_schedule(peak, peak * end_fraction, decay_steps)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, decay_steps, end_fraction)
    if config.warmup_steps == 0:
        return after
    # Starts above 0, so that the first step is not wasted.
    warmup = optax.linear_schedule(
        peak / config.warmup_steps, peak, config.warmup_steps - 1
    )
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def _decay_mask(params: PyTree, tables: bool) -> PyTree:
    # Not vectors, which are norm scales and biases, nor tables updated densely, whose
    # rows are mostly not read in a step and would vanish.
    def decays(path, leaf):
        return leaf.ndim > 1 and (tables or not is_table(path))

    return jax.tree.map_with_path(decays, params)


def map_state(
    tx: optax.GradientTransformation,
    on_param: Callable[..., Any],
    state: optax.OptState,
    *params: PyTree,
    otherwise: Callable[[Any], Any],
) -> PyTree:
    """Maps `on_param` over an optimizer's state, and `otherwise` over what is shared.

    `on_param` also gets the leaves of `params` of the parameter that a leaf belongs to.
    """

    def is_masked(leaf):  # as in Muon, which leaves some parameters to Adam
        return isinstance(leaf, optax.MaskedNode)

    return optax.tree.map_params(
        tx,
        lambda leaf, *rest: leaf if is_masked(leaf) else on_param(leaf, *rest),
        state,
        *params,
        transform_non_params=otherwise,
        is_leaf=is_masked,
    )


def is_table(path: tuple) -> bool:
    """Returns whether a parameter is a table of values, given its JAX key path."""
    return getattr(path[0], "key", None) == "values"


def _scale_values(rate: float) -> optax.GradientTransformation:
    def scale(path, leaf):
        return rate * leaf if is_table(path) else leaf

    return optax.stateless(lambda updates, _: jax.tree.map_with_path(scale, updates))
