"""Steps are compiled in a process of their own, for devices that are not here."""

import functools

import pytest

from smf_jax.plan.compile import compile_apart
from smf_jax.plan.topology import find
from tests.plan.compilers import require_compilers

require_compilers()

WIDTH = 512


@functools.cache
def compiled(name: str, width: int = WIDTH, step: str = "", limit: float = 120.0):
    request = {"mesh": {"model": 2}, "width": width, "step": step}
    return compile_apart(find(name), request, limit, child="tests.plan.small")


@pytest.mark.parametrize("name", ["v5e-8", "h100x8"])
def test_a_small_step_fits_and_is_measured(name):
    outcome = compiled(name)

    assert (outcome.fits, outcome.why) == (True, None)
    # A layer over `model`, and 8 tokens of half the width, in float32.
    groups = {"weights": WIDTH * WIDTH // 2 * 4, "batch": 8 * WIDTH // 2 * 4}
    assert outcome.groups == groups
    assert outcome.measured["arguments"] == sum(groups.values())
    assert outcome.needs < outcome.has
    (summed,) = outcome.measured["collectives"]
    assert (summed["kind"], summed["axes"]) == ("all-reduce", ["model"])
    assert (summed["arrays"], summed["size"]) == (["f32[8,512]"], 8 * WIDTH * 4)


def test_operations_are_told_for_tpu_and_not_for_gpu():
    tpu, gpu = compiled("v5e-8"), compiled("h100x8")

    # 8 tokens times half the layer, and a sum over two devices.
    assert tpu.measured["flops"] == pytest.approx(2 * 8 * WIDTH * WIDTH / 2, rel=0.01)
    assert gpu.measured["flops"] is None


@pytest.mark.parametrize("name", ["v5e-8", "h100x8x2"])
def test_a_step_that_cannot_fit_says_what_it_needs_and_what_there_is(name):
    width = 2**18  # weights of 128 GiB a device

    outcome = compiled(name, width)

    assert outcome.fits is False
    assert outcome.needs >= outcome.groups["weights"] == width * width // 2 * 4
    assert outcome.needs > outcome.has == find(name).memory


def test_a_compiler_that_does_not_end_is_stopped():
    outcome = compiled("v5e-8", step="endless", limit=2.0)

    assert outcome.fits is None
    assert outcome.why == "not compiled within --timeout 2 s"


def test_a_mistake_in_what_is_asked_is_told():
    outcome = compiled("v5e-8", step="mistake")

    assert (outcome.fits, outcome.why) == (None, "mesh.model=3 does not divide 8")


def test_a_compiler_that_crashes_is_told():
    outcome = compiled("v5e-8", step="crash")

    assert outcome.fits is None
    assert outcome.why.startswith("the compiling process ended with code 7")
