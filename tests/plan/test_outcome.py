"""What a compiler tells of a step that does not fit is read from its error."""

from smf_jax.plan.outcome import Allocation, read_too_large

# As libtpu 0.0.41 says it.
TOLD = """\
RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. Ran out \
of memory in memory space hbm. Used 27.50G of 15.75G hbm. Exceeded hbm capacity by \
11.75G.

Total hbm usage >= 2.75G:
    reserved        258.00M
    program         unknown size
    arguments         2.50G

  Largest program allocations in hbm:

  1. Size: 640.0K
     Operator: op_name="jit(step)/dot_general" source_file="step.py" source_line=7
     Shape: f32[20480,8]{0,1:T(8,128)}
     Unpadded size: 640.0K
     XLA label: fusion.1 = fusion(...)
     ==========================

  2. Size: 2.50G
     Shape: f32[20480,32768]{1,0:T(8,128)}
     XLA label: Argument 0 index {}
     ==========================
"""


def test_the_need_and_the_largest_arrays_are_read():
    told = read_too_large(TOLD)

    assert told.needs == 27.5 * 2**30
    assert told.largest == [
        Allocation(int(2.5 * 2**30), "f32[20480,32768]", "Argument 0 index {}"),
        Allocation(640 * 2**10, "f32[20480,8]", "jit(step)/dot_general"),
    ]


def test_one_array_that_is_too_large_is_the_least_that_is_needed():
    told = read_too_large(
        "RESOURCE_EXHAUSTED: Allocation (size=21474836480) would exceed memory "
        "(size=17179869184) :: %s0 = inlined_call_operand.hbm [shape: f32[20480,262144]"
    )

    assert (told.needs, told.largest) == (21474836480, [])


def test_another_error_is_none_of_memory():
    assert read_too_large("INVALID_ARGUMENT: no such layout") is None
