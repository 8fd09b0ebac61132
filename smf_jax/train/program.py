"""The step of a run as shapes and places alone, to be compiled for any devices."""

from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from smf_jax.config import FinetuneConfig, ModelConfig, PretrainConfig, RetrofitConfig
from smf_jax.data.batches import Batch
from smf_jax.model.build import abstract_model
from smf_jax.model.lora import add_lora
from smf_jax.optim.methods import Method, make_method
from smf_jax.sharding import BATCH, Placement, with_places
from smf_jax.train.setting import Background, TrainState
from smf_jax.train.state import abstract_split
from smf_jax.train.step import Step, background_shardings, make_step


class Arguments(NamedTuple):
    """What a step is given, as `jax.ShapeDtypeStruct`s with the place of each."""

    state: TrainState
    frozen: PyTree
    background: Background | None
    batch: Batch


class Program(NamedTuple):
    """A step that nothing was made for: `step.trace(*arguments)` is to be lowered."""

    step: Step
    arguments: Arguments


def step_program(
    config: PretrainConfig | RetrofitConfig | FinetuneConfig,
    model: ModelConfig,
    placement: Placement,
    rows: int,
    seq_len: int,
) -> Program:
    """Returns the step that a run would take, on texts that it has not seen before.

    Args:
      config: The run.
      model: What its model is made of, the size of its vocabulary known.
      placement: Where it would be, also of devices that are not here.
      rows: Of its batches, before devices are given as many each.
      seq_len: Tokens of a row.
    """
    method, balance = _method_of(config)
    max_skips = 0

    def make() -> nnx.Module:
        made = abstract_model(model, placement)
        if config.optim.method == "lora":
            add_lora(made, config.optim.lora, rngs=nnx.Rngs(0))
        return made

    graph, state, frozen = abstract_split(nnx.eval_shape(make), method)
    memory = model.memory
    step = make_step(
        graph, memory, method, config.accumulate, balance, max_skips, placement
    )
    background = None
    if method.score is not None:
        shapes = Background(
            jax.ShapeDtypeStruct((memory.num_pools, memory.num_slots), np.int32),
            jax.ShapeDtypeStruct((), np.int32),
        )
        background = with_places(shapes, background_shardings(placement))
    shape = (rows + placement.lacking(rows, config.accumulate), seq_len)
    split = placement.sharding(PartitionSpec(BATCH))
    integers = jax.ShapeDtypeStruct(shape, np.int32, sharding=split)
    floats = jax.ShapeDtypeStruct(shape, np.float32, sharding=split)
    batch = Batch(*(integers,) * 6)._replace(weights=floats)
    return Program(step, Arguments(state, frozen, background, batch))


def _method_of(
    config: PretrainConfig | RetrofitConfig | FinetuneConfig,
) -> tuple[Method, float]:
    """Returns a run's method, and how much it evens out reads."""
    if isinstance(config, FinetuneConfig):
        return make_method(config.optim, config.steps), 0.0
    rule = make_method(config.optim, config.steps, config.values_rate)
    return rule, config.balance
