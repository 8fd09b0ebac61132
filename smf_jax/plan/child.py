"""The process that compiles: `python -m smf_jax.plan.child` answers one request.

It is a process of its own since a compiler may never come to an end. A request comes as
JSON on its standard input and names the file for the answer: a compiler may print
whatever it likes.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from smf_jax.config import ConfigError
from smf_jax.plan.measure import measure, shard_bytes
from smf_jax.plan.outcome import read_too_large
from smf_jax.plan.step import Planned, planned_step
from smf_jax.plan.topology import Topology, find
from smf_jax.runs.record import lineage_of

# Makes the program of a request for devices that are not here.
Maker = Callable[[dict[str, Any], Sequence[jax.Device]], Planned]


def serve(make: Maker) -> None:
    """Answers the request on standard input."""
    request = json.load(sys.stdin)
    topology = find(request["topology"])
    answer = {"has": topology.memory}
    try:
        answer |= _compile(topology, request, make)
    except ConfigError as error:
        answer |= {"fits": None, "why": str(error)}
    Path(request["answer"]).write_text(json.dumps(answer))


def describe(topology: Topology) -> topologies.TopologyDescription:
    """Returns the devices of a topology, as jax describes them."""
    return topologies.get_topology_desc(platform=topology.platform, **topology.options)


def _compile(topology: Topology, request: dict, make: Maker) -> dict[str, Any]:
    program = make(request, describe(topology).devices)
    answer = {
        "mesh": request["mesh"] | program.mesh,
        "groups": {name: shard_bytes(of) for name, of in program.groups.items()},
    }
    traced = program.step.trace(*program.arguments)
    # Named, since it would else be lowered for the devices that are here.
    lowered = traced.lower(lowering_platforms=(topology.platform,))
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        told = read_too_large(str(error))
        if told is None:
            why = f"the compiler refused the step: {str(error).splitlines()[0][:300]}"
            return answer | {"fits": None, "why": why}
        return answer | {
            "fits": False,
            "needs": told.needs,
            "seconds": time.perf_counter() - start,
            "largest": [each._asdict() for each in told.largest],
        }
    seconds = time.perf_counter() - start
    measured = measure(compiled, program.mesh)
    return answer | {
        # A compiler for GPU does not look whether there is room for it.
        "fits": measured.peak <= topology.memory,
        "needs": measured.peak,
        "seconds": seconds,
        "measured": measured._asdict()
        | {
            "collectives": [each._asdict() for each in measured.collectives],
            "sent": measured.sent,
        },
    }


def of_run(request: dict[str, Any], devices: Sequence[jax.Device]) -> Planned:
    """Returns the step of the run that a request describes."""
    return planned_step(lineage_of(request["made"]), devices, request["texts"])


if __name__ == "__main__":
    serve(of_run)
