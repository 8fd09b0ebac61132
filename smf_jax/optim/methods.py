"""Finetuning methods as values: what trains, by which rule, on which rows."""

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


def _is_of_memory(path: tuple, leaf: Any) -> bool:
    return not {"memory", "memory_scale", "values"}.isdisjoint(path)


# Parameters of this type, or of which this holds, move; the rest is frozen.
TRAINABLE = {
    "full": nnx.Param,
    "lora": LoRAParam,
    "smf": MemoryValues,
    "memory": _is_of_memory,
}


class ReadRows(NamedTuple):
    """The parts of a `Method.tx` that moves rows of tables only if they are read."""

    whole: optax.GradientTransformation  # of all but tables
    rows: optax.GradientTransformation  # of tables alone, which it has masked


class Method(NamedTuple):
    """What the train step needs to know; it asks for no name."""

    trainable: type[nnx.Param] | Callable[[tuple, Any], bool]  # one of TRAINABLE
    tx: optax.GradientTransformationExtraArgs
    score: Score | None  # ranks the rows that may move; None: all of them move
    top_t: int  # rows a step and table; without meaning where score is None
    clip_norm: float | None = None  # of the gradient of what moves
    read: ReadRows | None = None  # None: whole tables move, or scored rows


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate of each of `steps` steps."""
    peak, end = config.learning_rate, config.learning_rate * config.final_fraction
    decay_steps = steps - config.warmup_steps
    match config.schedule:
        case "constant":
            after = optax.constant_schedule(peak)
        case "linear":
            after = optax.linear_schedule(peak, end, decay_steps)
        case "cosine":
            after = optax.cosine_decay_schedule(
                peak, decay_steps, config.final_fraction
            )
    if config.warmup_steps == 0:
        return after
    # From the first step on: a rate of 0 would waste it.
    rise = optax.linear_schedule(
        peak / config.warmup_steps, peak, config.warmup_steps - 1
    )
    return optax.join_schedules([rise, after], [config.warmup_steps])


def optimizer(
    config: OptimConfig, steps: int, values_rate: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Returns SGD, AdamW or Muon on the schedule.

    The updates of memory tables are multiplied by `values_rate`: each row is read by
    few tokens and has to learn from them. Where more than chosen rows train, tables do
    not decay.

    Source: Lample et al. 2019, arXiv:1907.05242, for a rate of the values' own.
    """
    rule = _rule(config, steps)
    if values_rate != 1:
        rule = optax.chain(rule, _scale_values(values_rate))
    return optax.with_extra_args_support(rule)


def _of_read_rows(config, steps, values_rate) -> ReadRows:
    rule = _rule(config, steps)
    return ReadRows(
        optax.masked(rule, functools.partial(_tables, are=False)),
        optax.chain(rule, optax.scale(values_rate)),
    )


def _rule(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    rate, decay = schedule(config, steps), config.weight_decay
    decays = functools.partial(_decays, tables=config.method == "smf")
    match config.optimizer:
        case "sgd":
            return optax.sgd(rate, momentum=config.momentum or None)
        case "adamw":
            return optax.adamw(rate, b2=ADAM_B2, weight_decay=decay, mask=decays)
        case "muon":
            return muon(rate, decay, decays, ADAM_B2)


def _tables(params: PyTree, are: bool) -> PyTree:
    return jax.tree.map_with_path(lambda path, _: is_of_table(path) == are, params)


def _decays(params: PyTree, tables: bool) -> PyTree:
    # Norm scales and biases are vectors; pulling them to 0 has no use. Of a table most
    # rows are not read in a step, and would fade.
    def decays(path, leaf):
        return leaf.ndim > 1 and (tables or not is_of_table(path))

    return jax.tree.map_with_path(decays, params)


def map_state(
    tx: optax.GradientTransformation,
    of_param: Callable[..., Any],
    state: optax.OptState,
    *params: PyTree,
    otherwise: Callable[[Any], Any],
) -> PyTree:
    """Returns what `of_param` makes of all that a state keeps for a parameter.

    It is given a leaf of the state, and those of `params` for that parameter; of what
    parameters share, `otherwise` is taken.
    """

    def is_left_out(leaf):  # of one of several rules, as Muon and Adam share parameters
        return isinstance(leaf, optax.MaskedNode)

    return optax.tree.map_params(
        tx,
        lambda leaf, *of: leaf if is_left_out(leaf) else of_param(leaf, *of),
        state,
        *params,
        transform_non_params=otherwise,
        is_leaf=is_left_out,
    )


def is_of_table(path: tuple) -> bool:
    """Returns whether a parameter is a memory's table, given jax's path of it."""
    return getattr(path[0], "key", None) == "values"


def _scale_values(rate: float) -> optax.GradientTransformation:
    def scale(path, leaf):
        return rate * leaf if is_of_table(path) else leaf

    return optax.stateless(lambda updates, _: jax.tree.map_with_path(scale, updates))


def make_method(config: OptimConfig, steps: int, values_rate: float = 1.0) -> Method:
    """Returns the method that a configuration names."""
    trainable, clip_norm = TRAINABLE[config.method], config.clip_norm
    if config.rows == "read":
        read = _of_read_rows(config, steps, values_rate)
        of_tables = optax.masked(read.rows, functools.partial(_tables, are=True))
        tx = optax.with_extra_args_support(optax.chain(read.whole, of_tables))
        return Method(trainable, tx, None, 0, clip_norm, read)
    tx = optimizer(config, steps, values_rate)
    if config.method == "smf":
        return Method(trainable, tx, scorer(config.select), config.top_t, clip_norm)
    return Method(trainable, tx, None, 0, clip_norm)
