"""How arrays are split over devices: one mesh of three axes, one table of rules.

    data    groups of devices that each hold all parameters
    fsdp    devices of a group that each hold a part of them, gathered where used
    model   devices that each compute a part of a layer's width

`data` and `fsdp` split the batch. Dense layers are left to the compiler, which follows
their parameters. Reads and writes of a memory's table run on each device's own part of
it (`kernels/`).
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
from smf_jax.cpu import has_amx
from smf_jax.tree import leaf_name

AXES = ("data", "fsdp", "model")
BATCH = ("data", "fsdp")  # the axes that split a batch
Axes = str | tuple[str, ...] | None

# The first pattern that matches a parameter's name gives the axis of each dimension. An
# axis that does not divide its dimension is left out.
_IN, _OUT = r"(query|key|value|gate|up)", r"(out|down)"  # into a layer, out of it
RULES = (
    (r"embedding", ("model", "fsdp")),
    (r".*/memory/query(/base)?/kernel", ("fsdp", None)),
    (r".*/memory/keys", (None, None, "fsdp", None)),
    (rf".*/{_IN}(/base)?/kernel|head(/base)?/kernel", ("fsdp", "model")),
    (rf".*/{_OUT}(/base)?/kernel", ("model", "fsdp")),
    (rf".*/{_IN}(/base)?/bias", ("model",)),
    # LoRA factors
    (rf".*/{_IN}/down|head/down", ("fsdp", None)),
    (rf".*/{_IN}/up|head/up", (None, "model")),
    (rf".*/{_OUT}/down", ("model", None)),
    (rf".*/{_OUT}/up", (None, "fsdp")),
    (r".*/memory/projection", ("fsdp", None)),
    (r".*/memory/(mean|gain|slots)", ()),
    (r".*/relevance(/base)?/(kernel|bias|down|up)|.*/memory_scale", ()),
    (r"(.*/)?\w*norm/scale", ()),
)


@dataclasses.dataclass(frozen=True)
class MeshLayout:
    """The devices of a model, how they share it, and how they compute."""

    mesh: Mesh | None = None  # None: one device
    table_split: TableSplit = "columns"
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)

    def __str__(self) -> str:
        words = "one device"
        if self.mesh is not None:
            words = name_mesh(dict(self.mesh.shape) | {"values": self.table_split})
        total = jax.device_count()
        left_out = total - self.axis_size(*AXES)
        return words + (f"; {left_out} of {total} devices left out" if left_out else "")

    @property
    def platform(self) -> str:
        """Returns the platform of its devices: cpu, gpu or tpu."""
        devices = jax.local_devices() if self.mesh is None else self.mesh.devices.flat
        return devices[0].platform

    @property
    def rounds_factors(self) -> bool:
        """Returns whether factors of dense products are rounded to bfloat16."""
        return self.compute.products == "bfloat16"

    @property
    def row_axes(self) -> tuple[str, ...]:
        """Returns the axes that split the slots of a table."""
        if self.mesh is None:
            return ()
        axes = {"columns": (), "slots": ("model",), "everywhere": AXES}
        return axes[self.table_split]

    @property
    def model_row_axes(self) -> tuple[str, ...]:
        """Returns "model" if it is one of `row_axes`."""
        return tuple(axis for axis in self.row_axes if axis == "model")

    @property
    def batch_row_axes(self) -> tuple[str, ...]:
        """Returns those of `row_axes` that also split a batch."""
        return tuple(axis for axis in self.row_axes if axis in BATCH)

    @property
    def table_spec(self) -> PartitionSpec:
        """Returns how a table [num_slots, value_dim] is split."""
        columns = "model" if self.table_split == "columns" else None
        return PartitionSpec(self.row_axes or None, columns)

    def axis_size(self, *axes: str) -> int:
        """Returns the number of devices along some axes."""
        sizes = {} if self.mesh is None else self.mesh.shape
        return math.prod(sizes.get(axis, 1) for axis in axes)

    def sharding(self, spec: PartitionSpec) -> jax.sharding.Sharding:
        """Returns the sharding of an array that is split by `spec`."""
        if self.mesh is None:
            return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return NamedSharding(self.mesh, spec)

    @property
    def replicated(self) -> jax.sharding.Sharding:
        """Returns the sharding of an array that every device holds whole."""
        return self.sharding(PartitionSpec())

    def constrain(self, x: Array, *spec: Any) -> Array:
        """Returns `x` with its sharding fixed for the compiler."""
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding(PartitionSpec(*spec)))

    def shard_map(
        self, function: Callable, in_specs: Any, out_specs: Any, check: bool = False
    ) -> Callable:
        """Returns `function` mapped over devices, or as it is for one device.

        `check` is needed where JAX is to differentiate it.
        """
        if self.mesh is None:
            return function
        specs = {"in_specs": in_specs, "out_specs": out_specs}
        return jax.shard_map(function, mesh=self.mesh, **specs, check_vma=check)

    def psum(self, x: Array, axes: Axes) -> Array:
        """Returns the sum over devices along `axes`, inside `shard_map`."""
        return x if self.mesh is None or not axes else jax.lax.psum(x, axes)

    def gather(self, x: Array, axes: Axes, dimension: int) -> Array:
        """Returns the parts of all devices along `axes`, concatenated."""
        if self.mesh is None or not axes:
            return x
        return jax.lax.all_gather(x, axes, axis=dimension, tiled=True)

    def scatter(self, x: Array, axes: Axes, dimension: int) -> Array:
        """Returns this device's part of the sum over devices along `axes`."""
        if self.mesh is None or not axes:
            return x
        return jax.lax.psum_scatter(x, axes, scatter_dimension=dimension, tiled=True)

    def param_shardings(self, params: PyTree) -> PyTree:
        """Returns the sharding of each parameter, given arrays or their shapes."""
        return jax.tree.map_with_path(
            lambda path, leaf: self.sharding(self.spec(leaf_name(path), leaf.shape)),
            params,
        )

    def spec(self, name: str, shape: tuple[int, ...]) -> PartitionSpec:
        """Returns how a parameter is split; `ValueError` if no rule matches."""
        if name.startswith("values/"):
            return self.table_spec
        axes = next((axes for rule, axes in RULES if re.fullmatch(rule, name)), None)
        if axes is None:
            raise ValueError(f"no rule in sharding.RULES matches {name}: add one")
        divides = (
            axis if axis and size % self.axis_size(axis) == 0 else None
            for axis, size in zip(axes, shape, strict=bool(axes))
        )
        return PartitionSpec(*divides)

    def device_put(self, tree: PyTree, shardings: PyTree | None = None) -> PyTree:
        """Returns arrays on the devices, given ones that each process holds whole.

        By default they are replicated.
        """
        if shardings is None:
            shardings = jax.tree.map(lambda _: self.replicated, tree)
        if jax.process_count() == 1:
            return jax.device_put(tree, shardings)

        def put(leaf, sharding):
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                return jax.device_put(leaf, sharding)  # already split over processes
            leaf = np.asarray(leaf)
            return jax.make_array_from_callback(
                leaf.shape, sharding, lambda index: leaf[index]
            )

        return jax.tree.map(put, tree, shardings)

    def padding_rows(self, rows: int, parts: int) -> int:
        """Returns how many rows a batch lacks to divide over devices and `parts`."""
        return -rows % (self.axis_size(*BATCH) * parts)

    def shard_batch(self, batch: PyTree, parts: int = 1) -> PyTree:
        """Returns a batch, which every process holds whole, split over devices.

        Rows of zeros pad it to a multiple of devices and `parts`.
        """
        if self.mesh is None:
            return batch
        padding = self.padding_rows(len(jax.tree.leaves(batch)[0]), parts)
        rows = self.sharding(PartitionSpec(BATCH))

        def pad(leaf):
            return np.pad(leaf, [(0, padding)] + [(0, 0)] * (leaf.ndim - 1))

        batch = jax.tree.map(pad, batch)
        return self.device_put(batch, jax.tree.map(lambda _: rows, batch))


ONE_DEVICE = MeshLayout()


def with_shardings(abstract: PyTree, shardings: PyTree) -> PyTree:
    """Returns `jax.ShapeDtypeStruct`s with shardings."""
    return jax.tree.map(
        lambda leaf, sharding: leaf.update(sharding=sharding), abstract, shardings
    )


def make_layout(
    mesh: MeshConfig,
    compute: ComputeConfig,
    memory: MemoryConfig | None,
    devices: Sequence[jax.Device] | None = None,
) -> MeshLayout:
    """Returns the layout that a configuration names, by default over all devices.

    A single process may leave devices out, several may not.

    Raises:
      ConfigError: The mesh does not fit the devices or the memory, or there are no
        kernels for the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    several = len({device.process_index for device in devices}) > 1
    shape = _mesh_shape(mesh, memory, len(devices), several)
    platform = devices[0].platform
    require(
        compute.lookup == "xla" or platform == "gpu",
        f"compute.lookup={compute.lookup} is for GPU, but the devices are {platform}: "
        "set compute.lookup=xla",
    )
    compute = choose_products(compute, platform)
    count = math.prod(shape)
    if count == 1 and not several:
        return MeshLayout(None, mesh.values, compute)
    kinds = (AxisType.Auto,) * len(AXES)
    grid = jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices[:count])
    return MeshLayout(grid, mesh.values, compute)


def choose_products(compute: ComputeConfig, platform: str) -> ComputeConfig:
    """Returns a configuration with the dtype that `products=auto` stands for."""
    if compute.products != "auto":
        return compute
    dtype = "bfloat16" if platform == "cpu" and has_amx() else "float32"
    return dataclasses.replace(compute, products=dtype)


def _mesh_shape(mesh, memory, devices: int, several: bool) -> tuple[int, int, int]:
    sizes = (mesh.data, mesh.fsdp, mesh.model)
    rest = max(devices // math.prod(size or 1 for size in sizes), 1)
    shape = tuple(size or rest for size in sizes)
    count = math.prod(shape)
    fits = count == devices if several else count <= devices
    all_of = ", and with several processes none may be left out" if several else ""
    require(
        fits,
        f"mesh.data={mesh.data} x mesh.fsdp={mesh.fsdp} x mesh.model={mesh.model} is "
        f"{count} devices, but there are {devices}{all_of}",
    )
    if memory is None or count == 1:
        return shape
    require(
        memory.value_dim % mesh.model == 0,
        f"memory.value_dim={memory.value_dim} is not a multiple of "
        f"mesh.model={mesh.model}",
    )
    rows = {"columns": 1, "slots": mesh.model, "everywhere": count}[mesh.values]
    require(
        memory.table_rows % rows == 0,
        f"mesh.values={mesh.values} splits the {memory.table_rows} rows of a table "
        f"(memory.num_keys={memory.num_keys}, squared) over {rows} devices, which do "
        "not divide them",
    )
    return shape
