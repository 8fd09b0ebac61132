"""Prints a plan: memory, FLOPs, collectives, the verdict, and what to change."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from smf_jax.config import FinetuneConfig, name_mesh
from smf_jax.plan.compile import Result
from smf_jax.plan.topology import GPUS, find

LARGE = 0.3  # fraction of a device's memory that is worth reducing


def show(results: Sequence[Result], config: Any, console: Console) -> None:
    """Prints the last result in full and the verdict on each."""
    result = results[-1]
    lines = [f"\n{result.topology}"]
    if result.groups is not None:
        lines += [f"mesh: {name_mesh(result.mesh)}", _memory(result)]
    if result.collectives is not None:
        flops = "unknown" if result.flops is None else f"{result.flops:.3g}"
        lines.append(f"FLOPs per device and step, each loop counted once: {flops}")
        lines.append(_collectives(result))
    if result.fits is False:
        lines += ["options that reduce memory:", *what_to_change(result, config)]
    for line in (*lines, *map(verdict, results)):
        console.print(line)


def verdict(result: Result) -> str:
    """Returns in one line whether a step fits."""
    if result.fits is None:
        return f"{result.topology}: no answer: {result.reason}"
    answer = "fits, needs" if result.fits else "does not fit, needs at least"
    needs = format_bytes(result.capacity if result.needs is None else result.needs)
    has = format_bytes(result.capacity)
    return f"{result.topology}: {answer} {needs} of {has} per device"


def what_to_change(result: Result, config: Any) -> Iterator[str]:
    """Yields options that reduce the memory of a step, each with its effect."""
    (topology,), held = find(result.topology), sum(result.groups.values())
    if result.needs is None or result.needs - held > LARGE * topology.memory:
        if not config.compute.remat:
            yield "  --compute.remat: recomputes blocks in the backward pass"
        if config.compute.activations == "float32":
            yield "  --compute.activations bfloat16: halves the activations"
        parts = f"--grad-accum-steps {config.grad_accum_steps * 2}"
        if not isinstance(config, FinetuneConfig):
            parts += " --balance-weight 0"
        yield f"  {parts}: splits the batch into parts"
    if held > LARGE * topology.memory:
        share = topology.devices // config.mesh.model
        if "memory values" in result.groups and config.mesh.values != "everywhere":
            yield "  --mesh.values everywhere: splits memory values over all devices"
        if result.mesh["fsdp"] < share:
            yield f"  --mesh.fsdp {share} --mesh.data 1: splits the dense parameters"
    if topology.family in GPUS:
        yield "  XLA_PYTHON_CLIENT_MEM_FRACTION=0.92: JAX allocates 75% by default"
    yield f"  --topology {topology.family}: finds the smallest size that fits"


def format_bytes(count: int) -> str:
    """Returns a number of bytes with a binary unit."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def _memory(result: Result) -> Table:
    rows = result.groups | {
        "all of these, with padding": result.arguments,
        "temporaries": result.temporaries,
        "peak": result.needs,
        "available": result.capacity,
    }
    table = Table("memory", "per device")
    for name, count in rows.items():
        table.add_row(name, "unknown" if count is None else format_bytes(count))
    return table


def _collectives(result: Result) -> Table:
    table = Table("collective", "mesh axes", "per step", "sent per device")
    for each in result.collectives:
        axes, sent = ", ".join(each.axes), format_bytes(each.sent)
        table.add_row(each.kind, axes, str(each.count), sent)
    total = sum(each.sent for each in result.collectives)
    table.add_row("total", "", "", format_bytes(total))
    return table
