"""The collectives of a compiled program are read from its text."""

import jax
import jax.numpy as jnp
import pytest
from jax.lax import psum
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from smf_jax.plan.collectives import Collective, axes_of, collectives, read_groups

MESH = {"data": 2, "fsdp": 2, "model": 2}
SIZE = 6 * 10 * 4


def count_up(x):
    return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: psum(x, "data") + 1, x)


# Functions of float32[6,10] with their `in_specs` and `out_specs`.
PROGRAMS = [
    (lambda x: psum(x, ("data", "model")), P(), P()),
    (lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), P("fsdp"), P()),
    (lambda x: jax.lax.psum_scatter(x, "model", tiled=True), P(), P("model")),
    (lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]), P(), P()),
    (lambda x: jax.lax.fori_loop(0, 5, lambda _, x: psum(x, "data"), x), P(), P()),
    (count_up, P(), P()),  # a loop of unknown length
    (lambda x: x + 1, P("data"), P("data")),
]
WANT = [
    [Collective("all-reduce", ("data", "model"), 1, 2 * SIZE * 3 // 4)],
    [Collective("all-gather", ("fsdp",), 1, SIZE // 2)],
    [Collective("reduce-scatter", ("model",), 1, SIZE // 2)],
    [Collective("collective-permute", ("data",), 1, SIZE)],
    [Collective("all-reduce", ("data",), 5, 5 * SIZE)],
    [Collective("all-reduce", ("data",), 1, SIZE)],
    [],
]


@pytest.mark.parametrize(("program", "want"), [*zip(PROGRAMS, WANT, strict=True)])
def test_the_collectives_of_a_known_program_are_found(program, want):
    function, in_spec, out_spec = program
    mesh = jax.make_mesh((2, 2, 2), tuple(MESH), axis_types=(AxisType.Auto,) * 3)
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_spec, out_specs=out_spec, check_vma=False
    )
    sharding = NamedSharding(mesh, in_spec)
    x = jax.ShapeDtypeStruct((6, 10), jnp.float32, sharding=sharding)
    text = jax.jit(mapped).lower(x).compile().as_text()

    assert collectives(text, MESH) == want


# All formats in which XLA prints groups.
FORMATS = [
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
    ("source_target_pairs={{0,0},{1,4},{4,1}}, x", ("data", "model")),
]


@pytest.mark.parametrize(("text", "axes"), FORMATS)
def test_the_mesh_axes_of_groups_are_found_in_every_format(text, axes):
    assert axes_of(read_groups(text, 8), MESH) == axes


def test_groups_in_an_unknown_format_are_refused():
    with pytest.raises(ValueError, match="unknown format of replica groups"):
        read_groups("replica_groups=<8>, x", 8)


# On TPU an overlapped collective is split into several computations, a reduce-scatter
# may be a fusion, and the trip count of a loop is only in its condition.
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
  %sum = f32[16,8]{1,0} all-reduce(%b), replica_groups=[4,2]<=[8]
  ROOT %part = f32[8,8]{1,0} dynamic-slice(%sum, %n, %n)
}
%condition (s: (s32[], f32[8,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5), metadata={op_name="jit(step)"}
  %count = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%count, %limit), direction=LT
}
%body (s: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %part = f32[8,8]{1,0} fusion(%s), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %s = (s32[]{:T(128)}, /*index=1*/f32[8,8]{1,0:T(8,128)S(1)}) tuple(%n, %part)
}
ENTRY %main (a: bf16[64,8], b: f32[16,8]) -> f32[8,8] {
  %start = bf16[128,8]{1,0} fusion(%a), kind=kCustom, calls=%begin
  %done = bf16[128,8]{1,0} fusion(%a), kind=kCustom, calls=%end
  %sum-start = f32[3]{0} all-reduce-start(%v), replica_groups={{0,4},{1,5}}
  %sum-done = f32[3]{0} all-reduce-done(%sum-start)
  ROOT %loop = (s32[], f32[8,8]) while(%init), condition=%condition, body=%body
}
"""


def test_a_tpu_program_counts_chains_once_and_loops_by_their_limit():
    assert collectives(TPU, MESH) == [
        Collective("reduce-scatter", ("model",), 5, 5 * 16 * 8 * 4 // 2),
        Collective("all-gather", ("model",), 1, 128 * 8 * 2 // 2),
        Collective("all-reduce", ("data",), 1, 3 * 4),
    ]
