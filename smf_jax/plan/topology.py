"""Accelerators that are not here, by the names that their makers sell them by."""

import difflib
import importlib.resources
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from smf_jax.config import ConfigError, require

GIB = 2**30


class Topology(NamedTuple):
    """A TPU slice, or GPUs of one or more hosts."""

    name: str  # as `find` takes it
    platform: str  # tpu or cuda
    family: str
    chips: int  # TPU chips, or GPUs
    devices: int  # as jax counts them
    hosts: int
    memory: int  # bytes of a device that a program may use
    options: dict[str, Any]  # of jax.experimental.topologies.get_topology_desc


class _Tpu(NamedTuple):
    named: int  # what its names count of a chip
    devices: int  # of jax, a chip
    gib: (
        float  # of a device, for programs; as libtpu 0.0.41 tells when one is too large
    )
    dims: int  # of its torus
    config: str = "default"  # megacore: both cores of a chip are one device


# Names count TensorCores (two a chip) where `named` is 2, and chips where it is 1.
# Source: Google's Cloud TPU pages on each of them.
TPUS = {
    "v4": _Tpu(2, 1, 30.75, 3, "megacore"),
    "v5e": _Tpu(1, 1, 15.75, 2),
    "v5p": _Tpu(2, 1, 95.74, 3),
    "v6e": _Tpu(1, 1, 31.25, 2),
    "tpu7x": _Tpu(2, 2, 94.75, 3),
}
# Shapes of the slices that are sold whole, by the dimensions of the torus.
SLICES = {
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: (
        *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
        *("8x8x16", "8x16x16", "16x16x16"),
    ),
}
GPUS = ("h100", "a100")
GPU_LADDER = ("1", "2", "4", "8", "8x2")
# What jax takes of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
GPU_FRACTION = 0.75
NAMES = (
    "v4-N, v5e-N, v5p-N, v6e-N, tpu7x-N, v5e:4x4, h100xGPUS, h100xGPUSxHOSTS, a100x8"
)


def find(name: str) -> Topology:
    """Returns the accelerators of a name: `v5e-16`, `v5p:2x2x2`, `h100x8`, `a100x8x2`.

    Raises:
      ConfigError: There are none of that name.
    """
    if match := re.fullmatch(r"(\w+)-(\d+)", name):
        shape = _shapes(match[1]).get(int(match[2]))
        if shape is not None:
            return _tpu(name, match[1], shape)
    if match := re.fullmatch(rf"({'|'.join(TPUS)}):([1-9]\d*(?:x[1-9]\d*)*)", name):
        return _tpu(name, match[1], match[2])
    if match := re.fullmatch(rf"({'|'.join(GPUS)})x([1-8])(?:x([1-9]\d?))?", name):
        return _gpus(name, match[1], int(match[2]), int(match[3] or 1))
    known = [each.name for family in (*TPUS, *GPUS) for each in ladder(family)]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise ConfigError(
        f"--topology {name} is none that is known ({NAMES}, or a family alone)"
        + (f"; close to it are {', '.join(near)}" if near else "")
    )


def is_family(name: str) -> bool:
    """Returns whether a name stands for all sizes of one kind."""
    return name in TPUS or name in GPUS


def ladder(family: str) -> list[Topology]:
    """Returns the sizes of a family, from the smallest."""
    if family in GPUS:
        return [find(f"{family}x{size}") for size in GPU_LADDER]
    return [
        _tpu(f"{family}-{size}", family, shape)
        for size, shape in _shapes(family).items()
    ]


def larger(topology: Topology) -> Topology | None:
    """Returns the next larger size of its family, if there is one."""
    sizes = ladder(topology.family)
    return next((size for size in sizes if size.devices > topology.devices), None)


def require_compiler(topology: Topology) -> None:
    """Raises `ConfigError` unless the compiler for a topology is installed."""
    modules = {"tpu": ("libtpu",), "cuda": ("jax_plugins.xla_cuda13", "nvidia.cu13")}
    missing = [name for name in modules[topology.platform] if not _is_there(name)]
    require(
        not missing,
        f"{topology.name} needs {' and '.join(missing)} to compile for it, not "
        "installed here: pip install smf-jax[plan]",
    )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of what it lies in
        return False


def _shapes(family: str) -> dict[int, str]:
    """Returns the shapes of a family's slices by the number in their names."""
    if family not in TPUS:
        return {}
    tpu = TPUS[family]
    # Of those with a torus in three dimensions, this one is sold by the chip.
    shapes = (("1x1x1",) if family == "tpu7x" else ()) + SLICES[tpu.dims]
    return {tpu.named * _product(shape): shape for shape in shapes}


def _product(shape: str) -> int:
    return math.prod(map(int, shape.split("x")))


def _tpu(name: str, family: str, shape: str) -> Topology:
    tpu, sides = TPUS[family], [int(side) for side in shape.split("x")]
    chips = _product(shape)
    # A host has 2 x 2 chips; but one chip may be had alone, and where the torus has two
    # dimensions there are hosts of eight, which no larger slice is made of.
    alone = {"1x1": (1, 1, 1), "1x1x1": (1, 1, 1), "2x4": (2, 4, 1)}
    bounds = alone.get(shape, (2, 2, 1))
    require(
        len(sides) == tpu.dims
        and all(s % b == 0 for s, b in zip(sides, bounds[: tpu.dims], strict=True)),
        f"--topology {name}: chips of {family} lie in {tpu.dims} dimensions, of which "
        "the first two are even, e.g. "
        f"{family}:{SLICES[tpu.dims][3]}",
    )
    options = {
        "topology_name": f"{family}:{shape}",
        "chips_per_host_bounds": bounds,
        "chip_config_name": tpu.config,
    }
    devices, memory = chips * tpu.devices, int(tpu.gib * GIB)
    hosts = chips // math.prod(bounds)
    return Topology(name, "tpu", family, chips, devices, hosts, memory, options)


def _gpus(name: str, family: str, each: int, hosts: int) -> Topology:
    file = importlib.resources.files("smf_jax.plan") / "targets" / f"{family}.txtpb"
    target = file.read_text()
    whole = int(re.search(r"device_memory_size: (\d+)", target)[1])
    options = {
        "topology_name": family,
        "target_config": target,
        "topology": f"1x{hosts}x{each}",  # slices x hosts x devices
    }
    gpus, memory = each * hosts, int(gpu_fraction() * whole)
    return Topology(name, "cuda", family, gpus, gpus, hosts, memory, options)


def gpu_fraction() -> float:
    """Returns the share of a GPU's memory that jax takes, which is less than all.

    Raises:
      ConfigError: The variable that sets it is no share.
    """
    text = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_FRACTION))
    try:
        share = float(text)
    except ValueError:
        share = -1
    require(0 < share <= 1, f"XLA_PYTHON_CLIENT_MEM_FRACTION={text} is no share of 1")
    return share
