"""Which topology and which mesh to compile for: as asked, or the best that there is."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, get_args

from smf_jax.config import (
    ConfigError,
    MemoryConfig,
    MeshConfig,
    TableSplit,
    name_mesh,
    require,
)
from smf_jax.plan.compile import compile_apart
from smf_jax.plan.outcome import Outcome
from smf_jax.plan.topology import Topology, find, is_family, ladder
from smf_jax.plan.words import name_devices, verdict
from smf_jax.runs.record import Lineage
from smf_jax.sharding import mesh_shape

LARGEST = 256  # devices of the largest size that is tried for a family
MODEL_WAYS = 16  # at most, of the meshes that are compared
Ask = Callable[[Topology, MeshConfig], Outcome]


def asker(
    made: Lineage, texts: int | None, limit: int | float, tell: Callable[[str], Any]
) -> Ask:
    """Returns a function that compiles the step of a run, and tells that it does."""

    def ask(topology: Topology, mesh: MeshConfig) -> Outcome:
        of = f"{name_devices(topology)}, {name_mesh(mesh)}"
        tell(f"{topology.name}: compiling for {of}")
        own = dataclasses.replace(made.own, mesh=mesh)
        parts = [own if config is made.own else config for config in made]
        request = {
            "mesh": dataclasses.asdict(mesh),
            "texts": texts,
            "made": {
                name: config and dataclasses.asdict(config)
                for name, config in zip(Lineage._fields, parts, strict=True)
            },
        }
        outcome = compile_apart(topology, request, limit)
        tell(f"{topology.name}: {verdict(outcome)}")
        return outcome

    return ask


def try_all(
    names: tuple[str, ...],
    mesh: MeshConfig | None,
    memory: MemoryConfig | None,
    ask: Ask,
) -> dict[str, list[Outcome]]:
    """Returns what came of each topology that is named, the best mesh of a size first.

    Of a family, sizes are tried from the smallest until one fits, or until a larger one
    needs no less on each device.

    Args:
      names: Topologies or families, as `find` and `is_family` know them.
      mesh: The mesh; None: all that make sense.
      memory: The model's memory layers.
      ask: Compiles for one topology and one mesh.

    Raises:
      ConfigError: There are none of a name, or the mesh can be on none of its sizes.
    """
    # A mistake in the last should not be found after the first is compiled.
    sizes = {name: _sizes(name, mesh, memory) for name in names}
    return {name: list(_try(of, mesh, memory, ask)) for name, of in sizes.items()}


def _sizes(
    name: str, mesh: MeshConfig | None, memory: MemoryConfig | None
) -> list[Topology]:
    """Returns the topologies of a name on which a mesh can be."""
    whole = is_family(name)
    sizes = [of for of in ladder(name) if of.devices <= LARGEST] if whole else []
    sizes = sizes or [find(name)]
    if mesh is None:
        return sizes
    refused = [_refusal(mesh, memory, size) for size in sizes]
    fitting = [size for size, why in zip(sizes, refused, strict=True) if why is None]
    require(len(fitting) > 0, f"--topology {name}: {refused[-1]}")
    return fitting


def _refusal(
    mesh: MeshConfig, memory: MemoryConfig | None, topology: Topology
) -> str | None:
    """Returns why a mesh cannot be on some devices, if so."""
    try:
        mesh_shape(mesh, memory, topology.devices, topology.hosts > 1)
    except ConfigError as error:
        return str(error)
    return None


def _try(sizes, mesh, memory, ask) -> Iterator[Outcome]:
    before = math.inf
    for topology in sizes:
        outcomes = _compare(topology, mesh, memory, ask)
        yield from outcomes
        needs = min((each.needs or math.inf for each in outcomes), default=math.inf)
        if outcomes[0].fits or (needs >= before and math.isfinite(needs)):
            return
        before = needs


def _compare(topology, mesh, memory, ask) -> list[Outcome]:
    choice = [mesh]
    if mesh is None:
        every = meshes(topology.devices, memory)
        choice = [one for one in every if _refusal(one, memory, topology) is None]
    return sorted((ask(topology, each) for each in choice), key=_rank)


def _rank(outcome: Outcome) -> tuple:
    # What fits has room enough; then what is sent costs time.
    order = {True: 0, False: 1, None: 2}
    sent = outcome.measured["sent"] if outcome.measured else math.inf
    return order[outcome.fits], sent, outcome.needs or math.inf


def meshes(devices: int, memory: MemoryConfig | None) -> list[MeshConfig]:
    """Returns the meshes of so many devices that are worth comparing.

    Layers are split over each divisor of them up to 16; the rest share the batch, and
    hold the parameters whole or split. A table is split in each way that differs.
    """
    found = []
    for model in range(1, min(devices, MODEL_WAYS) + 1):
        if devices % model == 0:
            rest = devices // model
            for data, fsdp in dict.fromkeys([(rest, 1), (1, rest)]):
                for values in _layouts(devices, model, memory):
                    found.append(
                        MeshConfig(data=data, fsdp=fsdp, model=model, values=values)
                    )
    return found


def _layouts(devices: int, model: int, memory: MemoryConfig | None) -> list[TableSplit]:
    if memory is None or devices == 1:
        return ["columns"]
    same = {"slots"} if model == 1 else set()  # neither is split by columns then
    return [layout for layout in get_args(TableSplit) if layout not in same]
