"""Over which devices arrays are spread: one mesh of three axes, one table of rules.

    data    groups of devices that each hold all parameters
    fsdp    devices of a group that each hold a part of them, gathered where it is used
    model   devices that each compute a part of a layer's width

A batch is shared by `data` and `fsdp`. Dense layers are left to the compiler, which
follows their parameters. What reads or writes a memory's table runs on each device's
own part of it (`kernels/sharded.py`).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from smf_jax.config import (
    ComputeConfig,
    MemoryConfig,
    MeshConfig,
    TableSplit,
    name_mesh,
    require,
)
from smf_jax.tree import leaf_name

AXES = ("data", "fsdp", "model")
BATCH = ("data", "fsdp")  # the axes that share a batch
TABLE = "table"  # stands for the axes by which the layout splits a table

# The first pattern that the name of a parameter matches says how it is split, one entry
# a dimension. An axis that does not divide its dimension is left out.
_WIDE, _NARROW = r"(query|key|value|gate|up)", r"(out|down)"  # into a layer, out of it
RULES = (
    (r"values/\d+", (TABLE, TABLE)),
    (r"embedding", ("model", "fsdp")),
    (r".*/memory/query(/base)?/kernel", ("fsdp", None)),
    (r".*/memory/keys", (None, None, "fsdp", None)),
    (rf".*/{_WIDE}(/base)?/kernel|head(/base)?/kernel", ("fsdp", "model")),
    (rf".*/{_NARROW}(/base)?/kernel", ("model", "fsdp")),
    (rf".*/{_WIDE}(/base)?/bias", ("model",)),
    # Of low-rank additions
    (rf".*/{_WIDE}/down|head/down", ("fsdp", None)),
    (rf".*/{_WIDE}/up|head/up", (None, "model")),
    (rf".*/{_NARROW}/down", ("model", None)),
    (rf".*/{_NARROW}/up", (None, "fsdp")),
    (r".*/relevance(/base)?/(kernel|bias|down|up)|.*/memory_scale", ()),
    (r"(.*/)?\w*norm/scale", ()),
)


@dataclasses.dataclass(frozen=True)
class MeshLayout:
    """Where a model lives, and how it is computed there."""

    mesh: Mesh | None = None  # None: one device
    table_split: TableSplit = "columns"
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)

    def __str__(self) -> str:
        """Returns in words over which devices it is spread."""
        if self.mesh is None:
            used, words = 1, "one device"
        else:
            used = self.mesh.size
            words = name_mesh(dict(self.mesh.shape) | {"values": self.table_split})
        left = jax.device_count() - used
        return words + (f"; {left} of {used + left} devices left out" if left else "")

    @property
    def platform(self) -> str:
        """The kind of its devices, as jax names it: cpu, gpu or tpu."""
        devices = jax.local_devices() if self.mesh is None else self.mesh.devices.flat
        return devices[0].platform

    @property
    def row_axes(self) -> tuple[str, ...]:
        """Axes over which the slots of a table are split."""
        if self.mesh is None:
            return ()
        return {"columns": (), "slots": ("model",), "everywhere": AXES}[
            self.table_split
        ]

    @property
    def table_spec(self) -> PartitionSpec:
        """How a table [num_slots, value_dim] is split."""
        columns = "model" if self.table_split == "columns" else None
        return PartitionSpec(self.row_axes or None, columns)

    def axis_size(self, *axes: str) -> int:
        """Returns over how many devices something split by some axes is spread."""
        sizes = {} if self.mesh is None else self.mesh.shape
        return int(np.prod([sizes.get(axis, 1) for axis in axes]))

    def sharding(self, spec: PartitionSpec) -> jax.sharding.Sharding:
        """Returns the sharding of an array that is split so."""
        if self.mesh is None:
            return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return NamedSharding(self.mesh, spec)

    @property
    def replicated(self) -> jax.sharding.Sharding:
        """The sharding of what every device holds whole."""
        return self.sharding(PartitionSpec())

    def constrain(self, x: Array, *spec: Any) -> Array:
        """Tells the compiler how an array is split."""
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding(PartitionSpec(*spec)))

    def shard_map(
        self, function: Callable, in_specs: Any, out_specs: Any, check: bool = False
    ) -> Callable:
        """Returns `function`, run by each device on its parts.

        `check` is for one whose gradient is taken.
        """
        if self.mesh is None:
            return function
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=check,
        )

    def param_shardings(self, params: PyTree) -> PyTree:
        """Returns the sharding of each parameter, given arrays or their shapes.

        Raises:
          ValueError: No rule is for a parameter.
        """
        return jax.tree.map_with_path(
            lambda path, leaf: self.sharding(self.spec(leaf_name(path), leaf.shape)),
            params,
        )

    def spec(self, name: str, shape: tuple[int, ...]) -> PartitionSpec:
        """Returns how the parameter of a name is split.

        Raises:
          ValueError: No rule is for it.
        """
        split = next((of for rule, of in RULES if re.fullmatch(rule, name)), None)
        if split is None:
            raise ValueError(f"no rule says how {name} of shape {shape} is split")
        if split == (TABLE, TABLE):
            return self.table_spec
        return PartitionSpec(
            *(
                axis if axis and size % self.axis_size(axis) == 0 else None
                for axis, size in zip(split, shape, strict=bool(split))
            )
        )

    def device_put(self, tree: PyTree, shardings: PyTree | None = None) -> PyTree:
        """Returns arrays, which each process has whole, placed; by default all over."""
        if shardings is None:
            shardings = jax.tree.map(lambda _: self.replicated, tree)

        def place(leaf, sharding):
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                return jax.device_put(leaf, sharding)  # spread over processes already
            leaf = np.asarray(leaf)
            return jax.make_array_from_callback(
                leaf.shape, sharding, lambda index: leaf[index]
            )

        if jax.process_count() == 1:
            return jax.device_put(tree, shardings)
        return jax.tree.map(place, tree, shardings)

    def padding_rows(self, rows: int, parts: int) -> int:
        """Returns the rows of padding that a batch needs.

        With them each device has as many rows as the others in each of `parts`.
        """
        return -rows % (self.axis_size(*BATCH) * parts)

    def shard_batch(self, batch: PyTree, parts: int = 1) -> PyTree:
        """Returns a batch, which every process has whole, with its rows shared.

        Rows of zeros are added, as many as are lacking.
        """
        if self.mesh is None:
            return batch
        lacking = self.padding_rows(len(jax.tree.leaves(batch)[0]), parts)
        rows = self.sharding(PartitionSpec(BATCH))

        def fill(leaf):
            return np.pad(leaf, [(0, lacking)] + [(0, 0)] * (leaf.ndim - 1))

        batch = jax.tree.map(fill, batch)
        return self.device_put(batch, jax.tree.map(lambda _: rows, batch))


ONE_DEVICE = MeshLayout()


def with_shardings(abstract: PyTree, shardings: PyTree) -> PyTree:
    """Returns shapes and types with the sharding of each."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        abstract,
        shardings,
    )


def make_layout(
    mesh: MeshConfig,
    compute: ComputeConfig,
    memory: MemoryConfig | None,
    devices: Sequence[jax.Device] | None = None,
) -> MeshLayout:
    """Returns a layout on devices, by default on all that there are.

    A single process may leave devices out; of several, none may.

    Raises:
      ConfigError: The devices are too few or too many, a table cannot be split so, or
        there are no kernels for them.
    """
    devices = list(jax.devices() if devices is None else devices)
    several = len({device.process_index for device in devices}) > 1
    shape = mesh_shape(mesh, memory, len(devices), several)
    count = int(np.prod(shape))
    require(
        compute.lookup == "xla" or devices[0].platform == "gpu",
        f"compute.lookup={compute.lookup} is for GPU, but the devices are "
        f"{devices[0].platform}; compute.lookup=xla runs on all",
    )
    layout = MeshLayout(None, mesh.values, compute)
    if count == 1 and not several:
        return layout
    return dataclasses.replace(layout, mesh=_arrange(shape, devices[:count]))


def mesh_shape(
    mesh: MeshConfig, memory: MemoryConfig | None, devices: int, several: bool
) -> tuple[int, int, int]:
    """Returns how many devices a mesh has along each of `AXES`.

    Args:
      mesh: As it is asked for.
      memory: The model's memory layers.
      devices: How many there are.
      several: Whether they are of several processes, so that none may be left out.

    Raises:
      ConfigError: The devices are too few or too many, or a table cannot be split so.
    """
    given = (mesh.data, mesh.fsdp, mesh.model)
    left = max(devices // math.prod(ways or 1 for ways in given), 1)
    shape = tuple(ways or left for ways in given)
    count = math.prod(shape)
    wrong = count != devices if several else count > devices
    all_of = ", and of several processes none may be left out" if several else ""
    require(
        not wrong,
        f"mesh.data={mesh.data} x mesh.fsdp={mesh.fsdp} x mesh.model={mesh.model} is "
        f"{count} devices, but there are {devices}{all_of}",
    )
    if memory is None or count == 1:
        return shape
    require(
        memory.value_dim % mesh.model == 0,
        f"memory.value_dim={memory.value_dim} is no multiple of "
        f"mesh.model={mesh.model}",
    )
    rows = {"columns": 1, "slots": mesh.model, "everywhere": count}[mesh.values]
    require(
        memory.num_slots % rows == 0,
        f"mesh.values={mesh.values} splits the {memory.num_slots} slots of a "
        f"table (memory.num_keys={memory.num_keys}, squared) over {rows} devices, "
        "which does not divide them",
    )
    return shape


def _arrange(shape: tuple[int, ...], devices: list[jax.Device]) -> Mesh:
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)
