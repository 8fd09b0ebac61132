"""The device mesh of a run, and how a step is computed on it."""

import dataclasses
from typing import Any, Literal

from smf_jax.config.checks import require

TableSplit = Literal["columns", "slots", "everywhere"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The device mesh, of `data * fsdp * model` devices."""

    data: int = 0  # replicas of all parameters; 0: as many as possible
    fsdp: int = 1  # shards of each parameter, gathered for use; 0: as many as possible
    model: int = 1  # shards of each layer's width
    # split of memory tables: value_dim over `model`, slots over `model`, or slots over
    # all devices
    values: TableSplit = "columns"

    def __post_init__(self):
        for name, least in (("data", 0), ("fsdp", 0), ("model", 1)):
            size = getattr(self, name)
            require(size >= least, f"mesh.{name}={size} must be {least} or more")
        require(
            self.data + self.fsdp > 0,
            "mesh.data=0 and mesh.fsdp=0: only one can take the remaining devices",
        )


def name_mesh(mesh: MeshConfig | dict[str, Any]) -> str:
    """Returns a mesh in words."""
    axes = mesh if isinstance(mesh, dict) else dataclasses.asdict(mesh)
    return " ".join(f"{name}={size or 'all'}" for name, size in axes.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a step is computed; parameters are float32 in any case."""

    activations: Literal["float32", "bfloat16"] = "float32"  # their dtype
    # dtype that factors of dense products are rounded to; products are summed in
    # float32. auto: bfloat16 on CPUs that multiply it faster, else float32
    products: Literal["auto", "float32", "bfloat16"] = "auto"
    remat: bool = False  # recompute activations in the backward pass
    scan_layers: bool = False  # compile equal blocks once; copies their weights
    lookup: Literal["xla", "pallas"] = "xla"  # memory kernels; Pallas is for GPU only
