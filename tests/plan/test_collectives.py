"""What a compiled program exchanges is read from its text: kind, size, axes, rounds."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from smf_jax.plan.collectives import Collective, collectives
from smf_jax.plan.groups import axes_of_groups, read_groups
from smf_jax.plan.measure import measure, shard_bytes

MESH = {"data": 2, "fsdp": 2, "model": 2}


def compiled(function, shape, in_spec, out_spec):
    mesh = jax.make_mesh(
        tuple(MESH.values()), tuple(MESH), axis_types=(jax.sharding.AxisType.Auto,) * 3
    )
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_spec, out_specs=out_spec, check_vma=False
    )
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, in_spec))
    return jax.jit(mapped).lower(x).compile()


def exchanged(*arguments) -> list[Collective]:
    return collectives(compiled(*arguments).as_text(), MESH)


def test_a_sum_over_two_axes_has_its_size_and_its_axes():
    (found,) = exchanged(
        lambda x: jax.lax.psum(x, ("data", "model")), (6, 10), P(), P()
    )

    assert found == Collective(
        kind="all-reduce",
        arrays=("f32[6,10]",),
        ways=4,
        axes=("data", "model"),
        times=1,
        size=6 * 10 * 4,
        sent=2 * 6 * 10 * 4 * 3 // 4,
    )


def test_a_gathering_sends_all_but_what_was_there():
    (found,) = exchanged(
        lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), (6, 10), P("fsdp"), P()
    )

    assert (found.kind, found.axes) == ("all-gather", ("fsdp",))
    assert (found.arrays, found.size) == (("f32[6,10]",), 6 * 10 * 4)
    assert found.sent == 3 * 10 * 4


def test_a_scattered_sum_is_as_large_as_what_goes_in():
    (found,) = exchanged(
        lambda x: jax.lax.psum_scatter(x, "model", tiled=True), (6, 10), P(), P("model")
    )

    assert (found.kind, found.axes) == ("reduce-scatter", ("model",))
    assert (found.arrays, found.size) == (("f32[3,10]",), 6 * 10 * 4)


def test_what_is_handed_on_moves_along_its_axis():
    (found,) = exchanged(
        lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]), (6, 10), P(), P()
    )

    assert (found.kind, found.axes) == ("collective-permute", ("data",))
    assert found.sent == 6 * 10 * 4


def test_an_exchange_in_a_scan_counts_once_a_round():
    def summed(x):
        def add(total, row):
            return total + jax.lax.psum(row + total, "data"), None

        return jax.lax.scan(add, jnp.zeros(10), x)[0]

    (found,) = exchanged(summed, (5, 10), P(), P())

    assert (found.times, found.size) == (5, 10 * 4)


def test_a_loop_that_ends_by_its_numbers_is_of_no_known_length():
    def summed(x):
        return jax.lax.while_loop(
            lambda x: x.sum() < 100, lambda x: jax.lax.psum(x, "data") + 1, x
        )

    (found,) = exchanged(summed, (6, 10), P(), P())

    assert found.times is None


def test_without_an_exchange_there_is_none():
    assert exchanged(lambda x: x + 1, (6, 10), P("data"), P("data")) == []


# As XLA writes them, in all its ways.
WAYS = [
    ("replica_groups={{0,1},{2,3},{4,5},{6,7}}, x", ("model",)),
    ("replica_groups={{0,2},{1,3},{4,6},{5,7}}, x", ("fsdp",)),
    ("replica_groups={}, x", ("data", "fsdp", "model")),
    ("replica_groups=[4,2]<=[8], x", ("model",)),
    ("replica_groups=[4,2]<=[2,2,2]T(0,2,1), x", ("fsdp",)),
    ("replica_groups=mesh['a'=4,'b'=2] {'a'}, x", ("data", "fsdp")),
    ("replica_groups=mesh['a'=4,'b'=2] {'a':(1)2,'b'}, x", ("data", "model")),
    ("replica_groups=mesh['a'=4,'b'=2] {'a':(2)2}, x", ("fsdp",)),
    (
        "replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=(0,2,4,6,1,3,5,7) {'a'}, x",
        ("data", "model"),
    ),
    (
        "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,2,2]T(1,0,2)) {'a':(2)2}, x",
        ("data",),
    ),
    ("replica_groups={{0,7},{1,6},{2,5},{3,4}}, x", None),
]


@pytest.mark.parametrize(("text", "axes"), WAYS)
def test_groups_lie_along_axes_however_they_are_written(text, axes):
    assert axes_of_groups(read_groups(text, 8), MESH) == axes


def test_groups_in_an_unknown_way_are_refused():
    with pytest.raises(ValueError, match="unknown groups"):
        read_groups("replica_groups=<8>, x", 8)


# On TPU an exchange beside other work is in three computations, and a sum of which each
# device keeps a part is a computation of its own.
TPU = """\
%begin (a: bf16[64,8]) -> bf16[128,8] {
  ROOT %g.1 = bf16[128,8]{1,0} all-gather(%a), replica_groups=[4,2]<=[8], \
frontend_attributes={chain_id="0"}
}

%end (a: bf16[64,8]) -> bf16[128,8] {
  ROOT %g.2 = bf16[128,8]{1,0} all-gather(%a), replica_groups=[4,2]<=[8], \
frontend_attributes={chain_id="0"}
}

%all-reduce-scatter.1 (b: f32[16,8]) -> f32[8,8] {
  %b = f32[16,8]{1,0} parameter(0)
  %sum = f32[16,8]{1,0} all-reduce(%b), replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %part = f32[8,8]{1,0} dynamic-slice(%sum, %n, %n)
}

ENTRY %main (a: bf16[64,8], b: f32[16,8]) -> f32[8,8] {
  %a = bf16[64,8]{1,0} parameter(0)
  %b = f32[16,8]{1,0} parameter(1)
  %start = bf16[128,8]{1,0} fusion(%a), kind=kCustom, calls=%begin
  %done = bf16[128,8]{1,0} fusion(%a), kind=kCustom, calls=%end
  ROOT %out = f32[8,8]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_what_a_tpu_does_in_several_computations_counts_once():
    gathered, scattered = collectives(TPU, MESH)

    assert (gathered.kind, gathered.times) == ("all-gather", 1)
    assert gathered.size == 128 * 8 * 2
    assert (scattered.kind, scattered.arrays) == ("reduce-scatter", ("f32[8,8]",))
    assert (scattered.size, scattered.sent) == (16 * 8 * 4, 16 * 8 * 4 // 2)


def test_memory_is_that_of_one_device():
    program = compiled(lambda x: x + 1, (6, 10), P("data"), P("data"))

    measured = measure(program, MESH)

    assert measured.arguments == measured.outputs == 3 * 10 * 4
    assert (measured.sent, measured.loops) == (0, False)


def test_a_device_holds_its_part_of_what_is_split():
    mesh = jax.make_mesh((8,), ("data",))
    split, whole = (NamedSharding(mesh, spec) for spec in (P("data"), P()))
    tree = [
        jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=split),
        jax.ShapeDtypeStruct((5,), jnp.bfloat16, sharding=whole),
    ]

    assert shard_bytes(tree) == 2 * 3 * 4 + 5 * 2
