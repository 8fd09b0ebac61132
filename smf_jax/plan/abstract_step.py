"""The training step of a run as shapes and shardings, to be compiled ahead of time."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxtyping import PyTree

from smf_jax.config import FinetuneConfig, ModelConfig, TrainConfig, require
from smf_jax.data.batches import Batch
from smf_jax.model.build import abstract_model
from smf_jax.model.lora import add_lora
from smf_jax.optim.methods import Method, make_method
from smf_jax.runs.record import Lineage, lineage_of
from smf_jax.sharding import AXES, BATCH, make_layout, with_shardings
from smf_jax.slots.document_frequency import Background
from smf_jax.train.state import TrainState, abstract_state, background_shardings
from smf_jax.train.step import Step, make_step
from smf_jax.tree import named


class AbstractStep(NamedTuple):
    """A step to compile with `step.trace(*arguments).lower()`; allocates no array."""

    step: Step
    arguments: tuple[PyTree, ...]  # `jax.ShapeDtypeStruct`s with shardings
    groups: dict[str, PyTree]  # the same arguments by purpose
    mesh: dict[str, int]  # size of each mesh axis, in order


def abstract_step(
    lineage: Lineage, rows: int, seq_len: int, devices: Sequence[jax.Device]
) -> AbstractStep:
    """Returns the training step of a run for devices that need not be attached.

    Reads no data: assumes the largest vocabulary that the configuration allows, no
    cached prefix (`reuse_prefix`), and a calibrated table with a row for each slot that
    a batch can read.

    Args:
      lineage: The run and the runs that its model comes from.
      rows: Batch rows, before padding.
      seq_len: Tokens per row.
      devices: Devices, at least as many as the mesh needs.

    Raises:
      ConfigError: The mesh does not fit the devices or the model, or optim.method=smf
        has no memory layers to train.
    """
    config, model = lineage.own, lineage.model
    if model.vocab_size == 0:
        model = dataclasses.replace(model, vocab_size=lineage.data.vocab_size)
    require(
        config.optim.method != "smf" or model.memory is not None,
        "optim.method=smf trains memory layers, but the base model has none",
    )
    model = _with_rows(model, config, rows * seq_len)
    layout = make_layout(config.mesh, config.compute, model.memory, devices)
    if layout.mesh is None:  # means the default device of this host
        types = (AxisType.Auto,) * len(AXES)
        mesh = Mesh(np.reshape(devices[:1], (1, 1, 1)), AXES, axis_types=types)
        layout = dataclasses.replace(layout, mesh=mesh)
    method, balance = _method(model, config)

    def make() -> nnx.Module:
        module = abstract_model(model, layout)
        if config.optim.method == "lora":
            add_lora(module, config.optim.lora, rngs=nnx.Rngs(0))
        return module

    graph, state, frozen = abstract_state(nnx.eval_shape(make), method)
    parts = config.grad_accum_steps
    step = make_step(graph, model.memory, method, parts, balance, 0, layout)
    background = None
    if method.score is not None and method.rows_per_fact is None:
        has_rows = model.memory.num_rows is not None
        with_facts = has_rows or config.optim.select == "contrastive"
        counts = (model.memory.num_tables, model.memory.table_rows)
        shapes = [jax.ShapeDtypeStruct(shape, np.int32) for shape in (counts, ())]
        background = Background(*shapes, *(shapes if with_facts else ()))
        shardings = background_shardings(layout, with_facts)
        background = with_shardings(background, shardings)
    rows += layout.padding_rows(rows, parts)
    split = layout.sharding(PartitionSpec(BATCH))

    def array(width: int, dtype: type) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, width), dtype, sharding=split)

    batch = Batch(*(array(seq_len, np.int32),) * 6)
    batch = batch._replace(weights=array(seq_len, np.float32))
    if method.rows_per_fact is not None:
        batch = batch._replace(own_rows=array(method.rows_per_fact, np.int32))
    groups = _groups(state, frozen) | {"background": background, "batch": batch}
    groups = {name: tree for name, tree in groups.items() if tree}
    arguments = (state, frozen, background, batch)
    return AbstractStep(step, arguments, groups, dict(layout.mesh.shape))


def _with_rows(model: ModelConfig, config: TrainConfig, tokens: int) -> ModelConfig:
    """Returns a model with all rows that facts of so many tokens can read."""
    memory = model.memory
    is_taught = isinstance(config, FinetuneConfig)
    if not is_taught or memory is None or memory.num_rows is None:
        return model
    reads = memory.num_rows + tokens * memory.num_heads * memory.top_k
    memory = memory.with_rows(min(reads, memory.num_slots))
    return dataclasses.replace(model, memory=memory)


def _method(model: ModelConfig, config: TrainConfig) -> tuple[Method, float]:
    """Returns the method of a run, and the weight of the balance loss."""
    if not isinstance(config, FinetuneConfig):
        rate = config.values_lr_scale
        return make_method(config.optim, config.steps, rate), config.balance_weight
    facts = config.batch_size
    method = make_method(config.optim, config.steps, facts_per_step=facts)
    return method.within(model.memory), 0.0


def step_of_record(
    record: dict[str, Any], rows: int, seq_len: int, devices: Sequence[jax.Device]
) -> AbstractStep:
    """Returns `abstract_step` of a lineage in the form of a run's record."""
    return abstract_step(lineage_of(record), rows, seq_len, devices)


def batch_shape(lineage: Lineage, texts: int | None) -> tuple[int, int]:
    """Returns the rows and the tokens per row of a run's batch.

    Raises:
      ConfigError: `texts`, the texts per fact, or the sequence length is missing.
    """
    config = lineage.own
    if not isinstance(config, FinetuneConfig):
        return config.data.batch_size, config.data.seq_len
    require(
        texts is not None or config.teach == "questions",
        f"teach={config.teach} uses every text of a fact: set --texts to their number",
    )
    seq_len = config.seq_len or (lineage.data and lineage.data.seq_len)
    require(seq_len is not None, f"{config.base} has no data config: set --seq-len")
    return config.batch_size * (texts or 1), -(-seq_len // 8) * 8


def _groups(state: TrainState, frozen: PyTree) -> dict[str, PyTree]:
    trainable, frozen = named(state.trainable), named(frozen)
    tables = {n: p for n, p in (trainable | frozen).items() if n.startswith("values/")}
    return {
        "parameters": {n: p for n, p in trainable.items() if n not in tables},
        "memory values": tables,
        "frozen parameters": {n: p for n, p in frozen.items() if n not in tables},
        "optimizer state": (state.opt_state, state.skipped),
    }
