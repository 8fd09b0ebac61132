"""Detects which process this is, out of how many, and the coordinator's address."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from smf_jax.config import require

VARIABLES = ("SMF_COORDINATOR", "SMF_NUM_PROCESSES", "SMF_PROCESS_ID")
TIMEOUTS = {"SMF_START_TIMEOUT": 120, "SMF_PEER_TIMEOUT": 30, "SMF_STEP_TIMEOUT": 600}
TPU_PORT = 8482  # as in jax
SLURM_PORTS = range(61440, 65536)  # as in jax: above the ephemeral ports of Linux


class Cluster(NamedTuple):
    """The processes of a run, and which of them this one is."""

    address: str  # of process 0, as HOST:PORT
    num_processes: int
    rank: int  # of this process, from 0


def detect(environment: Mapping[str, str]) -> Cluster | None:
    """Returns the cluster of this process, or None if it runs alone.

    The first source that is set wins: `VARIABLES`, a SLURM step, a TPU pod.

    Raises:
      ConfigError: A variable is missing, or contradicts another.
    """
    # A batch script has no step; the shell of salloc is a step of one task.
    several = environment.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    if not environment.keys().isdisjoint(VARIABLES):
        address, count, rank = _values(VARIABLES, environment)
    elif several and "SLURM_STEP_ID" in environment:
        address, count, rank = _slurm(environment)
    elif "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        address, count, rank = _tpu_pod(environment)
    else:
        return None
    host, _, port = address.rpartition(":")
    require(
        bool(host) and port.isdecimal() and 0 < int(port) < 65536,
        f"SMF_COORDINATOR={address} must be HOST:PORT",
    )
    require(
        count.isdecimal() and rank.isdecimal() and int(rank) < int(count),
        f"rank {rank} (SMF_PROCESS_ID, SLURM_PROCID or TPU_WORKER_ID) must be a whole "
        f"number below the number of processes, {count}",
    )
    return Cluster(address, int(count), int(rank)) if int(count) > 1 else None


def _values(names: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    missing = [name for name in names if name not in environment]
    present = [name for name in names if name in environment]
    require(not missing, f"{present[0]} is set, but not {' and '.join(missing)}")
    return [environment[name] for name in names]


def _slurm(environment: Mapping[str, str]) -> tuple[str, str, str]:
    names = "STEP_NUM_TASKS", "STEP_ID", "STEP_NODELIST", "JOB_ID", "PROCID"
    names = [f"SLURM_{name}" for name in names]
    count, step, nodes, job, rank = _values(names, environment)
    # The first host of a list such as gpu[003-006,009],login1.
    first = re.match(r"([\w.-]|\[\d[\d,-]*\])+(?=,|$)", nodes)
    require(first is not None, f"SLURM_STEP_NODELIST={nodes} is not a list of hosts")
    host = re.sub(r"\[(\d+)[^]]*\]", r"\1", first[0])
    # Steps of one job, and consecutive jobs, may share a host at the same time.
    port = SLURM_PORTS[(16 * int(job) + int(step)) % len(SLURM_PORTS)]
    return f"{host}:{port}", count, rank


def _tpu_pod(environment: Mapping[str, str]) -> tuple[str, str, str]:
    slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    require(
        slices == "1",
        f"MEGASCALE_NUM_SLICES={slices}, but TPU_WORKER_HOSTNAMES lists the hosts of "
        f"one slice only: set {', '.join(VARIABLES)}",
    )
    hosts, rank = _values(("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"), environment)
    first, *others = hosts.split(",")
    return f"{first.strip()}:{TPU_PORT}", str(1 + len(others)), rank


def timeout(name: str, environment: Mapping[str, str]) -> int:
    """Returns the seconds of one of `TIMEOUTS`; `ConfigError` if it is not above 2."""
    value = environment.get(name, str(TIMEOUTS[name]))
    require(
        value.isdecimal() and int(value) > 2,  # a heartbeat may be 2 seconds late
        f"{name}={value} must be a whole number of seconds above 2",
    )
    return int(value)
