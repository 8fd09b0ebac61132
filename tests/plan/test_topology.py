"""Slices and hosts are found by the names that their vendors use."""

import sys

import pytest

from smf_jax.config import ConfigError
from smf_jax.plan.topology import GPUS, TPUS, find, require_compiler


@pytest.mark.parametrize(
    ("name", "devices", "shape"),
    [
        ("v4-8", 4, "v4:2x2x1"),  # v4 and v5p count TensorCores, two per chip
        ("v5p-128", 64, "v5p:4x4x4"),
        ("v5e-1", 1, "v5e:1x1"),  # v5e and v6e count chips
        ("v6e-256", 256, "v6e:16x16"),
        ("tpu7x-2", 2, "tpu7x:1x1x1"),  # counts TensorCores, each of them a device
        ("a100x8x2", 16, "a100x8x2"),
    ],
)
def test_a_slice_is_found_by_name_and_by_shape(name, devices, shape):
    (found,) = find(name)

    assert found.devices == devices
    assert [found] == find(shape)


def test_memory_is_what_the_compiler_or_jax_makes_available(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    (tpu,), (usual,) = find("v5e-16"), find("h100x8")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")

    assert tpu.memory == 15.75 * 2**30
    assert find("h100x8")[0].memory / usual.memory == pytest.approx(0.9 / 0.75)


@pytest.mark.parametrize(
    ("name", "near"),
    [("v5litepod-8", "v5p-8"), ("h100x9", "h100x8"), ("v5e:3x4", "v5e:4x4")],
)
def test_an_unknown_name_is_refused_with_its_nearest_match(name, near):
    with pytest.raises(ConfigError, match=f"--topology {name} .*{near}"):
        find(name)


@pytest.mark.parametrize("family", [*TPUS, *GPUS])
def test_the_sizes_of_a_family_rise_and_are_found_by_their_names(family):
    sizes = find(family)

    devices = [size.devices for size in sizes]
    assert devices == sorted(set(devices))
    assert [find(size.name) for size in sizes] == [[size] for size in sizes]


def test_a_missing_compiler_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)  # as if it were not installed

    with pytest.raises(ConfigError, match=r"v5e-8 needs libtpu: pip install .*plan"):
        require_compiler(*find("v5e-8"))
