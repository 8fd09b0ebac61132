"""Which process this is, from environment variables, SLURM and TPU pods."""

import pytest

from smf_jax.config import ConfigError
from smf_jax.multihost.cluster import TPU_PORT, Cluster, detect, timeout

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


def without(variables, *names):
    return {name: variables[name] for name in variables if name not in names}


@pytest.mark.parametrize(
    ("environment", "want"),
    [
        (NAMED | STEP | POD, Cluster("one:1234", 3, 2)),
        # 61440 + (16 * 1000 + 2) % 4096
        (STEP | POD, Cluster("gpu003:65154", 4, 3)),
        (POD, Cluster(f"t0.pod:{TPU_PORT}", 2, 1)),
        (NAMED | {"SMF_COORDINATOR": "[::1]:5"}, Cluster("[::1]:5", 3, 2)),
    ],
)
def test_the_first_source_that_is_set_wins(environment, want):
    assert detect(environment) == want


@pytest.mark.parametrize(
    "environment",
    [
        {},
        without(STEP, "SLURM_STEP_ID"),  # a script of sbatch
        without(STEP, "SLURM_STEP_ID", "SLURM_PROCID"),  # a shell of salloc
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},  # a shell of salloc that is a step
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        NAMED | {"SMF_NUM_PROCESSES": "1", "SMF_PROCESS_ID": "0"},
    ],
)
def test_a_process_that_runs_alone_has_no_cluster(environment):
    assert detect(environment) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        *((without(NAMED, name), f"is set, but not {name}") for name in NAMED),
        ({"SMF_COORDINATOR": "a:1"}, "not SMF_NUM_PROCESSES and SMF_PROCESS_ID"),
        (NAMED | {"SMF_PROCESS_ID": "3"}, "rank 3 .* number of processes, 3"),
        (NAMED | {"SMF_PROCESS_ID": "-1"}, "rank -1 .* whole number"),
        (NAMED | {"SMF_NUM_PROCESSES": "0"}, "number of processes, 0"),
        (NAMED | {"SMF_COORDINATOR": "one"}, "SMF_COORDINATOR=one must be HOST"),
        (NAMED | {"SMF_COORDINATOR": ":12"}, "SMF_COORDINATOR=:12 must be HOST"),
        (NAMED | {"SMF_COORDINATOR": "a:70000"}, "a:70000 must be HOST:PORT"),
        (STEP | {"SLURM_PROCID": "4"}, "rank 4 .*SLURM_PROCID"),
        (without(STEP, "SLURM_JOB_ID"), "not SLURM_JOB_ID"),
        (STEP | {"SLURM_STEP_NODELIST": "gpu[1-"}, "not a list of hosts"),
        (without(POD, "TPU_WORKER_ID"), "not TPU_WORKER_ID"),
        (POD | {"TPU_WORKER_ID": "2"}, "rank 2 .*TPU_WORKER_ID"),
        (POD | {"MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_NUM_SLICES=2"),
    ],
)
def test_incomplete_or_contradictory_settings_are_refused(environment, message):
    with pytest.raises(ConfigError, match=message):
        detect(environment)


@pytest.mark.parametrize(
    ("nodes", "want"),
    [
        ("login1", "login1"),
        ("a,b", "a"),
        ("gpu[7,009]", "gpu7"),
        ("rack[1-2]node[04-09]-ib,x", "rack1node04-ib"),
        ("n1.site.org,n2.site.org", "n1.site.org"),
    ],
)
def test_the_coordinator_is_the_first_host_of_a_slurm_node_list(nodes, want):
    cluster = detect(STEP | {"SLURM_STEP_NODELIST": nodes})

    assert cluster.address.partition(":")[0] == want


@pytest.mark.parametrize("value", ["0", "2", "-3", "soon", "4.5", ""])
def test_a_timeout_is_a_whole_number_of_seconds_above_two(value):
    with pytest.raises(ConfigError, match=f"SMF_START_TIMEOUT={value} must be"):
        timeout("SMF_START_TIMEOUT", {"SMF_START_TIMEOUT": value})


def test_a_timeout_that_is_not_set_has_its_default():
    assert timeout("SMF_START_TIMEOUT", {}) == 120
