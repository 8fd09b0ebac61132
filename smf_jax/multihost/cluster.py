"""Who is who: what the command line or the environment says of the processes."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from smf_jax.config import ConfigError, require

FLAGS = ("--coordinator", "--num-processes", "--process-id")
VARIABLES = ("SMF_COORDINATOR", "SMF_NUM_PROCESSES", "SMF_PROCESS_ID")
TPU_PORT = 8482  # as jax has it
# Above the ports that Linux gives out by itself, as jax has it.
SLURM_PORTS = range(61440, 65536)


class Who(NamedTuple):
    """Which of how many processes this one is, and where they meet."""

    host: str  # of process 0; all can reach it
    port: int
    count: int  # of processes
    number: int  # of this one, from 0

    @property
    def address(self) -> str:
        """Where they meet, as HOST:PORT."""
        return f"{self.host}:{self.port}"


def take_flags(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Returns what `FLAGS` say among the arguments of a command, and the others.

    Raises:
      ConfigError: One is without a value, or there twice.
    """
    said, others, rest = {}, [], list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag not in FLAGS:
            others.append(flag + equals + value)
            continue
        if not equals:
            require(bool(rest), f"{flag} is without a value")
            value = rest.pop(0)
        require(flag not in said, f"{flag} is there twice: {said.get(flag)}, {value}")
        said[flag] = value
    return said, others


def who(said: Mapping[str, str], environment: Mapping[str, str]) -> Who | None:
    """Returns which process this is, or None if it is the only one.

    In this order: the flags, SMF_COORDINATOR and its like, a step of SLURM, a TPU pod.

    Args:
      said: The flags, as `take_flags` gives them.
      environment: The variables of the environment.

    Raises:
      ConfigError: Some of what is needed is missing, or does not fit together.
    """
    found = (
        _named(FLAGS, said)
        or _named(VARIABLES, environment)
        or _slurm(environment)
        or _tpu_pod(environment)
    )
    return found if found and found.count > 1 else None


def number_of(name: str, environment: Mapping[str, str], default: int) -> int:
    """Returns the whole number of a variable that may be missing.

    Raises:
      ConfigError: It is no whole number, or below 1.
    """
    value = environment.get(name, str(default))
    require(value.isdecimal() and int(value) > 0, f"{name}={value} must be 1 or more")
    return int(value)


def _named(names: Sequence[str], values: Mapping[str, str]) -> Who | None:
    there = [name for name in names if name in values]
    if not there:
        return None
    missing = [name for name in names if name not in values]
    require(not missing, f"{there[-1]} is set, but {' and '.join(missing)} not")
    address, count, number = names
    host, _, port = values[address].rpartition(":")
    require(
        bool(host) and port.isdecimal() and 0 < int(port) < 65536,
        f"{address}={values[address]} must be HOST:PORT",
    )
    return _checked(host, int(port), (count, values[count]), (number, values[number]))


def _checked(host: str, port: int, count: tuple, number: tuple) -> Who:
    for name, value in (count, number):
        require(value.isdecimal(), f"{name}={value} is no whole number")
    (name, number), (of, count) = number, count
    require(int(number) < int(count), f"{name}={number} must be below {of}={count}")
    return Who(host, port, int(count), int(number))


def _slurm(environment: Mapping[str, str]) -> Who | None:
    # A script of sbatch and a shell of salloc have no step of their own, or one of one
    # task, though SLURM_NTASKS counts the tasks of the whole allocation there, too.
    if not {"SLURM_STEP_ID", "SLURM_PROCID"} <= environment.keys():
        return None
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    tasks = next((name for name in names if name in environment), None)
    if tasks is None or environment[tasks] == "1":
        return None
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
    nodes = next((name for name in names if name in environment), names[0])
    for name in (nodes, "SLURM_JOB_ID"):
        require(name in environment, f"SLURM_PROCID is set, but {name} is not")
    job, step = (environment[f"SLURM_{name}_ID"] for name in ("JOB", "STEP"))
    for name, value in (("SLURM_JOB_ID", job), ("SLURM_STEP_ID", step)):
        require(value.isdecimal(), f"{name}={value} is no whole number")
    # Steps of one job, and the jobs after it, may be on one host at one time.
    place = 16 * int(job) + int(step)
    return _checked(
        first_host(environment[nodes]),
        SLURM_PORTS[place % len(SLURM_PORTS)],
        (tasks, environment[tasks]),
        ("SLURM_PROCID", environment["SLURM_PROCID"]),
    )


def first_host(nodes: str) -> str:
    """Returns the first host of a list as SLURM writes it: gpu[003-006,009],login1.

    Raises:
      ConfigError: It is no such list.
    """
    first = re.match(r"([\w.-]|\[\d[\d,-]*\])+(?=,|$)", nodes)
    if first is None:
        raise ConfigError(f"{nodes!r} is no list of hosts as SLURM writes it")
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", first[0])


def _tpu_pod(environment: Mapping[str, str]) -> Who | None:
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if len(hosts) == 1:
        return None
    slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    require(
        slices == "1",
        f"MEGASCALE_NUM_SLICES={slices}, but TPU_WORKER_HOSTNAMES names the hosts of "
        f"one slice: name the processes of all by {', '.join(FLAGS)}",
    )
    require(
        "TPU_WORKER_ID" in environment,
        f"TPU_WORKER_HOSTNAMES names {len(hosts)} hosts, but TPU_WORKER_ID is not set",
    )
    return _checked(
        hosts[0].strip(),
        TPU_PORT,
        ("the number of TPU_WORKER_HOSTNAMES", str(len(hosts))),
        ("TPU_WORKER_ID", environment["TPU_WORKER_ID"]),
    )
