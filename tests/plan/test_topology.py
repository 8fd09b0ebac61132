"""Slices and hosts go by the names that they are sold by."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from smf_jax.config import ConfigError
from smf_jax.plan.topology import (
    GPUS,
    TPUS,
    find,
    ladder,
    larger,
)

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "chips", "devices", "hosts"),
    [
        ("v4-8", 4, 4, 1),  # v4 and v5p count cores, of which a chip has two
        ("v5p-8", 4, 4, 1),
        ("v5p-128", 64, 64, 16),
        ("v5e-1", 1, 1, 1),  # v5e and v6e count chips
        ("v5e-8", 8, 8, 1),  # a host of eight chips
        ("v5e-16", 16, 16, 4),
        ("v6e-256", 256, 256, 64),
        ("tpu7x-2", 1, 2, 1),  # counts cores, too, and each is a device
        ("tpu7x-8", 4, 8, 1),
        ("v5e:4x4", 16, 16, 4),
        ("v5p:2x2x2", 8, 8, 2),
        ("h100x1", 1, 1, 1),
        ("h100x8", 8, 8, 1),
        ("a100x8x2", 16, 16, 2),
    ],
)
def test_a_name_says_how_many_chips_devices_and_hosts(name, chips, devices, hosts):
    found = find(name)

    assert (found.chips, found.devices, found.hosts) == (chips, devices, hosts)


def test_a_tpu_program_may_use_what_the_compiler_leaves_it():
    assert find("v5e-16").memory == 15.75 * GIB


def test_a_gpu_program_may_use_three_quarters_unless_the_variable_says(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    usual = find("h100x8").memory
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")

    assert find("h100x8").memory / usual == pytest.approx(0.9 / 0.75)


def test_a_share_of_gpu_memory_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "90%")

    with pytest.raises(ConfigError, match="XLA_PYTHON_CLIENT_MEM_FRACTION=90%"):
        find("h100x8")


@pytest.mark.parametrize(
    ("name", "near"),
    [("v5litepod-8", "v5p-8"), ("v5e-12", "v5e-128"), ("h100x9", "h100x8")],
)
def test_an_unknown_name_is_refused_with_its_nearest_match(name, near):
    with pytest.raises(ConfigError, match=f"--topology {name} .*{near}"):
        find(name)


@pytest.mark.parametrize("name", ["v5e:3x4", "v5e:2x2x2", "v4:4x4", "tpu7x:1x2x1"])
def test_a_shape_that_no_slice_has_is_refused(name):
    with pytest.raises(ConfigError, match=f"--topology {name}:"):
        find(name)


@pytest.mark.parametrize("family", [*TPUS, *GPUS])
def test_the_sizes_of_a_family_rise_and_are_found_by_their_names(family):
    sizes = ladder(family)

    devices = [size.devices for size in sizes]
    assert devices == sorted(set(devices))
    assert [find(size.name) for size in sizes] == sizes


def test_the_next_larger_size_is_the_smallest_that_is_larger():
    assert larger(find("v5e-16")).name == "v5e-32"
    assert larger(find("v5e:2x6")).name == "v5e-16"  # of 12 chips
    assert larger(find("h100x8")).name == "h100x8x2"
    assert larger(find("v6e-256")) is None


@pytest.mark.parametrize("name", ["v5e-8", "h100x8"])
def test_a_missing_compiler_is_named_with_what_to_install(name):
    code = f"from smf_jax.plan.topology import *; require_compiler(find('{name}'))"

    done = subprocess.run(
        [sys.executable, "-S", "-c", code],  # -S: without what is installed
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )

    last = done.stderr.splitlines()[-1]
    assert re.search(rf"ConfigError: {name} needs .*pip install smf-jax\[plan\]", last)
