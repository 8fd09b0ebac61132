"""Which process of how many this is: from flags, variables, SLURM and TPU pods."""

import pytest

from smf_jax.config import ConfigError
from smf_jax.multihost.cluster import (
    TPU_PORT,
    Who,
    first_host,
    number_of,
    take_flags,
    who,
)

NAMED = {
    "SMF_COORDINATOR": "one:1234",
    "SMF_NUM_PROCESSES": "3",
    "SMF_PROCESS_ID": "2",
}
STEP = {
    "SLURM_JOB_ID": "1000",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NODELIST": "gpu[003-006,009],login1",
    "SLURM_JOB_NODELIST": "gpu[001-009],login1",
}
POD = {"TPU_WORKER_HOSTNAMES": "t0.pod,t1.pod", "TPU_WORKER_ID": "1"}
FLAGS = {"--coordinator": "two:99", "--num-processes": "2", "--process-id": "0"}


@pytest.mark.parametrize(
    ("said", "environment", "want"),
    [
        ({}, {}, None),
        (FLAGS, NAMED | STEP | POD, Who("two", 99, 2, 0)),
        ({}, NAMED | STEP | POD, Who("one", 1234, 3, 2)),
        # 61440 + (16 * 1000 + 2) % 4096
        ({}, STEP | POD, Who("gpu003", 65154, 4, 3)),
        ({}, POD, Who("t0.pod", TPU_PORT, 2, 1)),
        ({}, NAMED | {"SMF_COORDINATOR": "[::1]:5"}, Who("[::1]", 5, 3, 2)),
    ],
)
def test_the_first_that_says_anything_is_believed(said, environment, want):
    assert who(said, environment) == want


@pytest.mark.parametrize(
    ("changed", "without"),
    [
        ({}, ["SLURM_STEP_ID"]),  # a script of sbatch: task 0 of the batch step
        ({}, ["SLURM_STEP_ID", "SLURM_PROCID"]),  # a shell of salloc
        ({"SLURM_STEP_NUM_TASKS": "1"}, []),  # a shell of salloc that is a step
        ({"SLURM_NTASKS": "1"}, ["SLURM_STEP_NUM_TASKS"]),  # srun of one task
    ],
)
def test_what_is_no_step_of_several_tasks_is_one_process(changed, without):
    step = {name: value for name, value in STEP.items() if name not in without}

    assert who({}, step | changed) is None


@pytest.mark.parametrize(
    "environment",
    [
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        NAMED | {"SMF_NUM_PROCESSES": "1", "SMF_PROCESS_ID": "0"},
    ],
)
def test_one_of_one_is_the_only_one(environment):
    assert who({}, environment) is None


def without(name, variables):
    return {other: value for other, value in variables.items() if other != name}


@pytest.mark.parametrize(
    ("said", "environment", "message"),
    [
        *(({}, without(name, NAMED), f"{name} is not|{name} not") for name in NAMED),
        ({"--coordinator": "a:1"}, {}, "--num-processes and --process-id not"),
        ({}, NAMED | {"SMF_PROCESS_ID": "3"}, "SMF_PROCESS_ID=3 must be below"),
        ({}, NAMED | {"SMF_PROCESS_ID": "-1"}, "SMF_PROCESS_ID=-1 is no whole number"),
        ({}, NAMED | {"SMF_NUM_PROCESSES": "0"}, "below SMF_NUM_PROCESSES=0"),
        ({}, NAMED | {"SMF_COORDINATOR": "one"}, "SMF_COORDINATOR=one must be HOST"),
        ({}, NAMED | {"SMF_COORDINATOR": ":12"}, "SMF_COORDINATOR=:12 must be HOST"),
        ({}, NAMED | {"SMF_COORDINATOR": "a:70000"}, "a:70000 must be HOST:PORT"),
        ({}, STEP | {"SLURM_PROCID": "4"}, "SLURM_PROCID=4 must be below"),
        ({}, without("SLURM_JOB_ID", STEP), "SLURM_JOB_ID is not"),
        ({}, STEP | {"SLURM_STEP_NODELIST": "gpu[1-"}, "no list of hosts"),
        ({}, without("TPU_WORKER_ID", POD), "TPU_WORKER_ID is not set"),
        ({}, POD | {"TPU_WORKER_ID": "2"}, "TPU_WORKER_ID=2 must be below"),
        ({}, POD | {"MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_NUM_SLICES=2"),
    ],
)
def test_what_is_half_said_or_does_not_fit_is_refused(said, environment, message):
    with pytest.raises(ConfigError, match=message):
        who(said, environment)


@pytest.mark.parametrize(
    ("nodes", "want"),
    [
        ("login1", "login1"),
        ("a,b", "a"),
        ("gpu[003-006,009],login1", "gpu003"),
        ("gpu[7,009]", "gpu7"),
        ("rack[1-2]node[04-09]-ib,x", "rack1node04-ib"),
        ("n1.site.org,n2.site.org", "n1.site.org"),
    ],
)
def test_the_first_host_of_a_list_is_found(nodes, want):
    assert first_host(nodes) == want


def test_flags_are_taken_from_wherever_they_stand():
    argv = ["--coordinator=a:1", "pretrain", "--num-processes", "2", "c.py"]
    argv += ["--process-id", "0", "--steps=3"]

    said, others = take_flags(argv)

    assert said == {
        "--coordinator": "a:1",
        "--num-processes": "2",
        "--process-id": "0",
    }
    assert others == ["pretrain", "c.py", "--steps=3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--process-id"], "--process-id is without a value"),
        (["--process-id=1", "--process-id=2"], "--process-id is there twice: 1, 2"),
    ],
)
def test_a_flag_without_a_value_or_there_twice_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        take_flags(arguments)


@pytest.mark.parametrize("value", ["0", "-3", "soon", "1.5", ""])
def test_a_time_is_a_whole_number_of_seconds(value):
    with pytest.raises(ConfigError, match="SMF_START_TIMEOUT"):
        number_of("SMF_START_TIMEOUT", {"SMF_START_TIMEOUT": value}, 120)
