"""Bytes, meshes and outcomes in words."""

from smf_jax.plan.outcome import Outcome
from smf_jax.plan.topology import Topology


def verdict(outcome: Outcome) -> str:
    """Returns in a line what came of a step."""
    if outcome.fits is None:
        return f"no answer: {outcome.why}"
    fits = "fits" if outcome.fits else "does not fit"
    has = gib(outcome.has)
    if outcome.needs is None:
        return f"{fits}: a device has {has}"
    least = "at least " if outcome.measured is None else ""
    took = "" if outcome.seconds is None else f" (compiled in {outcome.seconds:.1f} s)"
    return f"{fits}: needs {least}{gib(outcome.needs)} of {has} a device{took}"


def gib(count: int) -> str:
    """Returns bytes as one reads them."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def name_devices(topology: Topology) -> str:
    """Returns how many devices there are, on how many hosts."""
    of_gpu = topology.platform == "cuda"
    kind = "GPU" if of_gpu else "chip"
    several = f"{topology.chips} {kind}{'s' if topology.chips > 1 else ''}"
    hosts = f" on {topology.hosts} hosts" if topology.hosts > 1 else ""
    return several + hosts
