"""Over which devices a run is spread, and how it computes there."""

import dataclasses
from typing import Literal

from smf_jax.config.checks import require

Layout = Literal["columns", "slots", "everywhere"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How devices share a run: `data * fsdp * model` of them."""

    data: int = 0  # groups that each hold all parameters; 0: as many as there can be
    fsdp: int = 1  # parts of a parameter, gathered for use; these, too, share the batch
    model: int = 1  # parts of a layer's width
    # A memory's table: value_dim over `model`; slots over `model`; slots over all three
    values: Layout = "columns"

    def __post_init__(self):
        require(self.data >= 0, f"mesh.data={self.data} must be 0 or more")
        for name in ("fsdp", "model"):
            ways = getattr(self, name)
            require(ways >= 1, f"mesh.{name}={ways} must be 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a step is computed; the parameters are float32 either way."""

    activations: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False  # compute a block again in the backward pass, not keep it
    scan_layers: bool = False  # compile like blocks once; copies their weights a step
