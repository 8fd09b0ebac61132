"""The step of a run for devices that are not here, its arguments by what they are."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import PyTree
from smf_jax.train.program import Arguments, step_program

from smf_jax.config import FinetuneConfig, require
from smf_jax.runs.record import Lineage
from smf_jax.sharding import AXES, MeshLayout, make_layout
from smf_jax.train.step import Step
from smf_jax.tree import named


class Planned(NamedTuple):
    """A step that is to be compiled, and what it is given as shapes with places."""

    step: Step
    arguments: tuple[PyTree, ...]  # in their order
    groups: dict[str, PyTree]  # the same arrays by what they are
    mesh: dict[str, int]  # devices along each of its axes, in its order


def planned_step(
    made: Lineage, devices: Sequence[jax.Device], texts: int | None = None
) -> Planned:
    """Returns the step of a run, for devices that need not be here.

    No data is read: a vocabulary is as large as it may get, and so is a taught text.

    Args:
      made: How the model comes to be, and what the run does.
      devices: What jax has for them; as many as the mesh needs are used.
      texts: That each fact is taught by.

    Raises:
      ConfigError: The mesh does not fit the devices or the model, the model has no
        memory to teach, or something is left open that only data would tell.
    """
    own, model = made.own, made.model
    if model.vocab_size == 0:
        model = dataclasses.replace(model, vocab_size=made.data.vocab_size)
    require(
        own.optim.method != "smf" or model.memory is not None,
        "optim.method=smf teaches the memory layers of a model that has none",
    )
    layout = _placement(made, devices)
    program = step_program(own, model, layout, *_rows(made, texts))
    groups = _groups(program.arguments)
    return Planned(program.step, program.arguments, groups, dict(layout.mesh.shape))


def _groups(arguments: Arguments) -> dict[str, PyTree]:
    state, frozen, background, batch = arguments
    of_memory, dense = {}, {}
    for name, leaf in named((state.trainable, frozen)).items():
        (of_memory if "/values/" in name else dense)[name] = leaf
    groups = {
        "dense parameters": dense,
        "memory values": of_memory,
        "optimizer": (state.opt_state, state.skipped),
        "background": background,
        "batch": batch,
    }
    return {name: tree for name, tree in groups.items() if jax.tree.leaves(tree)}


def _placement(made: Lineage, devices: Sequence[jax.Device]) -> MeshLayout:
    own, memory = made.own, made.model.memory
    layout = make_layout(own.mesh, own.compute, memory, devices)
    if layout.mesh is None:  # it would be one of those that are here
        kinds = (AxisType.Auto,) * len(AXES)
        mesh = Mesh(np.reshape(devices[:1], (1, 1, 1)), AXES, axis_types=kinds)
        layout = dataclasses.replace(layout, mesh=mesh)
    return layout


def _rows(made: Lineage, texts: int | None) -> tuple[int, int]:
    own = made.own
    if not isinstance(own, FinetuneConfig):
        return own.data.batch_size, own.data.seq_len
    require(
        texts is not None or own.teach == "questions",
        f"teach={own.teach} teaches a fact by as many texts as there are of it: say "
        "how many by --texts",
    )
    seq_len = own.seq_len or (made.data and made.data.seq_len)
    require(
        seq_len is not None, f"{own.base} was imported without data: name --seq-len"
    )
    return own.batch_size * (texts or 1), -(-seq_len // 8) * 8
