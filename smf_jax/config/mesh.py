"""Over which devices a run is spread, and how it computes there."""

import dataclasses
from typing import Any, Literal

from smf_jax.config.checks import require

TableSplit = Literal["columns", "slots", "everywhere"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How devices share a run: `data * fsdp * model` of them.

    One of `data` and `fsdp` may be 0, which stands for as many as there can be.
    """

    data: int = 0  # groups of devices that each hold all parameters
    fsdp: int = 1  # parts of a parameter, gathered for use; these, too, share the batch
    model: int = 1  # parts of a layer's width
    # A memory's table: value_dim over `model`; slots over `model`; slots over all three
    values: TableSplit = "columns"

    def __post_init__(self):
        for name, least in (("data", 0), ("fsdp", 0), ("model", 1)):
            ways = getattr(self, name)
            require(ways >= least, f"mesh.{name}={ways} must be {least} or more")
        require(
            self.data + self.fsdp > 0,
            "mesh.data and mesh.fsdp are both 0: only one can be as many as are left",
        )


def name_mesh(mesh: MeshConfig | dict[str, Any]) -> str:
    """Returns a mesh as one reads it."""
    parts = mesh if isinstance(mesh, dict) else dataclasses.asdict(mesh)
    return " ".join(f"{name}={part or 'all'}" for name, part in parts.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a step is computed; the parameters are float32 either way."""

    activations: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False  # compute a block again in the backward pass, not keep it
    scan_layers: bool = False  # compile like blocks once; copies their weights a step
    # What sums a memory's rows: XLA, or kernels of our own, which are for GPU and TPU
    lookup: Literal["xla", "pallas"] = "xla"
