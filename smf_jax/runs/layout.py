"""The mesh that a run's model is put on when it is only read."""

import dataclasses

import jax
from rich.console import Console

from smf_jax.config import ComputeConfig, ConfigError, MeshConfig
from smf_jax.runs.record import Lineage
from smf_jax.sharding import MeshLayout, make_layout


def layout_of(lineage: Lineage, mesh: MeshConfig | None = None) -> MeshLayout:
    """Returns the layout of a model that is only read.

    That is the given mesh, else the mesh it was trained on if these devices allow it,
    else one copy a device. The results are equal up to rounding.

    Raises:
      ConfigError: The given mesh does not fit the devices or the model.
    """
    imported = lineage.own is lineage.imported
    compute = ComputeConfig() if imported else lineage.own.compute
    if jax.default_backend() == "cpu":  # the GPU kernels do not run here
        compute = dataclasses.replace(compute, lookup="xla")
    if mesh is not None:
        return make_layout(mesh, compute, lineage.model.memory)
    try:
        return make_layout(lineage.mesh, compute, lineage.model.memory)
    except ConfigError:
        return make_layout(MeshConfig(), compute, lineage.model.memory)


def print_layout(layout: MeshLayout, console: Console) -> None:
    """Prints the mesh of a run, if there are several devices, and rounded products."""
    if jax.device_count() > 1:
        console.print(f"mesh: {layout}")
    if layout.rounds_factors:
        console.print("products: factors rounded to bfloat16 (compute.products)")
