"""Which topologies and meshes are tried, in which order, and where the search ends."""

import pytest

from smf_jax.config import ConfigError, MemoryConfig, MeshConfig, name_mesh
from smf_jax.plan.outcome import Outcome
from smf_jax.plan.search import meshes, try_all
from smf_jax.plan.words import gib, verdict

GIB = 2**30
MEMORY = MemoryConfig()


def asker(needs, asked=None):
    """Returns what compiles nothing: `needs` tells GiB a device of a topology, mesh."""

    def ask(topology, mesh):
        if asked is not None:
            asked.append((topology.name, mesh))
        count = int(needs(topology, mesh) * GIB)
        parts = {"data": mesh.data, "fsdp": mesh.fsdp, "model": mesh.model}
        return Outcome(
            topology=topology.name,
            mesh=parts | {"values": mesh.values},
            fits=count <= topology.memory,
            has=topology.memory,
            needs=count,
            measured={"sent": mesh.model},
        )

    return ask


def test_a_family_is_tried_from_its_smallest_size_until_one_fits():
    ask = asker(lambda topology, mesh: 100 / topology.devices)

    plan = try_all(("v5e", "h100"), MeshConfig(), None, ask)

    assert [each.topology for each in plan["v5e"]] == ["v5e-1", "v5e-4", "v5e-8"]
    assert [each.fits for each in plan["v5e"]] == [False, False, True]
    assert [each.topology for each in plan["h100"]] == ["h100x1", "h100x2"]


def test_a_family_is_given_up_where_a_larger_size_needs_no_less():
    plan = try_all(("v5e",), MeshConfig(), None, asker(lambda *_: 100))

    assert [each.topology for each in plan["v5e"]] == ["v5e-1", "v5e-4"]


def test_sizes_with_too_few_devices_for_the_mesh_are_passed_over():
    ask = asker(lambda topology, mesh: 1)

    plan = try_all(("v5e",), MeshConfig(fsdp=4, model=2), None, ask)

    assert [each.topology for each in plan["v5e"]] == ["v5e-8"]


def test_a_mesh_that_can_be_on_no_size_is_refused_before_anything_is_compiled():
    asked = []
    ask = asker(lambda *_: 1, asked)

    with pytest.raises(ConfigError, match=r"h100x2: .* is 3 devices, but there are 2"):
        try_all(("v5e-8", "h100x2"), MeshConfig(data=3), None, ask)
    with pytest.raises(ConfigError, match=r"h100: .* is 17 devices"):
        try_all(("h100",), MeshConfig(data=17), None, ask)
    with pytest.raises(ConfigError, match=r"h100x8x2: .* none may be left out"):
        try_all(("h100x8x2",), MeshConfig(data=8), None, ask)

    assert asked == []


def test_meshes_that_a_table_cannot_be_split_by_are_not_compared():
    ask = asker(lambda *_: 1)
    memory = MemoryConfig(num_keys=9, value_dim=18)

    outcomes = try_all(("v5e-8",), None, memory, ask)["v5e-8"]

    found = {(each.mesh["model"], each.mesh["values"]) for each in outcomes}
    assert found == {(1, "columns"), (2, "columns")}


def test_a_mistake_in_the_last_name_is_told_before_anything_is_compiled():
    asked = []

    with pytest.raises(ConfigError, match="v5e-9"):
        try_all(("v5e-8", "v5e-9"), MeshConfig(), None, asker(lambda *_: 1, asked))

    assert asked == []


def test_compared_meshes_come_with_what_fits_and_sends_least_first():
    ask = asker(lambda topology, mesh: 40 / mesh.model)

    outcomes = try_all(("v5e-8",), None, None, ask)["v5e-8"]

    assert [(each.fits, each.mesh["model"]) for each in outcomes] == [
        (True, 4),
        (True, 4),
        (True, 8),
        (False, 1),
        (False, 1),
        (False, 2),
        (False, 2),
    ]


@pytest.mark.parametrize("devices", [1, 4, 12, 64])
@pytest.mark.parametrize("memory", [None, MEMORY])
def test_compared_meshes_use_all_devices_and_differ(devices, memory):
    found = meshes(devices, memory)

    assert {mesh.data * mesh.fsdp * mesh.model for mesh in found} == {devices}
    assert len(set(found)) == len(found)


def test_tables_are_split_in_each_way_that_differs():
    def layouts(model):
        found = meshes(4, MEMORY)
        return {mesh.values for mesh in found if mesh.model == model}

    assert layouts(1) == {"columns", "everywhere"}
    assert layouts(2) == {"columns", "slots", "everywhere"}
    assert {mesh.values for mesh in meshes(4, None)} == {"columns"}


def test_a_verdict_has_what_is_needed_and_what_there_is():
    fits = Outcome("v5e-1", {}, True, has=16 * GIB, needs=GIB, seconds=2.5, measured={})
    large = Outcome("v5e-1", {}, False, has=16 * GIB, needs=20 * GIB)
    none = Outcome("v5e-1", {}, None, why="not compiled within --timeout 2 s")

    line = "fits: needs 1.00 GiB of 16.00 GiB a device (compiled in 2.5 s)"
    assert verdict(fits) == line
    line = "does not fit: needs at least 20.00 GiB of 16.00 GiB a device"
    assert verdict(large) == line
    assert verdict(none) == "no answer: not compiled within --timeout 2 s"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (3 * GIB, "3.00 GiB")],
)
def test_bytes_have_a_unit(count, text):
    assert gib(count) == text


def test_a_mesh_of_all_devices_says_so():
    mesh = MeshConfig(fsdp=2)

    assert name_mesh(mesh) == "data=all fsdp=2 model=1 values=columns"
