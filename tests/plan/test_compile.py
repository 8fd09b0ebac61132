"""Steps are compiled ahead of time, in a subprocess with a time limit."""

import json

import pytest

from smf_jax import cli
from smf_jax.config import ConfigError, FinetuneConfig, OptimConfig
from smf_jax.plan.collectives import Collective
from smf_jax.plan.compile import Result, compile_for, find_smallest, needed_bytes
from smf_jax.plan.topology import find
from tests.integration.commands import CONFIG_FILE
from tests.plan import small
from tests.tiny import pretrain_config

GIB = 2**30
needs_compilers = pytest.mark.usefixtures("compilers")


def compiled(name: str, make, *arguments, timeout: float = 120.0) -> Result:
    function = f"{make.__module__}:{make.__name__}"
    return compile_for(*find(name), function, arguments, timeout)


@needs_compilers
@pytest.mark.parametrize("name", ["v5e-8", "h100x8"])
def test_a_small_step_fits_and_is_measured(name):
    width = 512

    result = compiled(name, small.square_layer, width)

    assert (result.fits, result.reason) == (True, None)
    # A layer over `model`, and 8 tokens of half the width, in float32.
    groups = {"weights": width * width // 2 * 4, "batch": 8 * width // 2 * 4}
    assert result.groups == groups
    assert result.arguments == sum(groups.values())
    assert result.needs < result.capacity == find(name)[0].memory
    # On a ring of two devices, each sends as many bytes as it sums.
    summed = Collective("all-reduce", ("model",), 1, 8 * width * 4)
    assert result.collectives == [summed]
    # 8 tokens times half the layer; the compiler for GPU does not count.
    flops = pytest.approx(2 * 8 * width * width / 2, rel=0.01)
    assert result.flops == (None if name == "h100x8" else flops)


@needs_compilers
@pytest.mark.parametrize("name", ["v5e-8", "h100x8x2"])
def test_a_step_that_cannot_fit_reports_what_it_needs(name):
    width = 2**18  # weights of 128 GiB per device

    result = compiled(name, small.square_layer, width)

    assert result.fits is False
    assert result.needs >= result.groups["weights"] == width * width // 2 * 4
    assert result.needs > result.capacity


@needs_compilers
def test_a_compiler_that_hangs_or_crashes_is_stopped_and_reported():
    hanging = compiled("v5e-8", small.misbehave, "hang", timeout=2.0)
    crashed = compiled("v5e-8", small.misbehave, "crash")

    assert (hanging.fits, crashed.fits) == (None, None)
    assert hanging.reason == "compiling took longer than --timeout 2 s"
    assert crashed.reason.startswith("the compiler process exited with code 7: ")


@needs_compilers
def test_a_mistake_is_raised_with_its_topology():
    with pytest.raises(ConfigError, match=r"v5e-8: mesh\.model=3 does not divide 8"):
        compiled("v5e-8", small.misbehave, "mistake")


def test_the_needed_bytes_are_read_from_the_compilers_error():
    # The two formats of libtpu 0.0.41.
    used = "Ran out of memory in memory space hbm. Used 27.50G of 15.75G hbm. Exceeded"
    single = "Allocation (size=21474836480) would exceed memory (size=17179869184) ::"

    assert needed_bytes(f"RESOURCE_EXHAUSTED: E1000: {used}") == 27.5 * GIB
    assert needed_bytes(f"RESOURCE_EXHAUSTED: {single}") == 21474836480
    assert needed_bytes("RESOURCE_EXHAUSTED: no room") is None


def smallest(family: str, gib) -> list[tuple[str, bool]]:
    """Returns the sizes tried when the step needs `gib(devices)` GiB per device."""

    def compile_one(topology):
        if topology.devices == 4:
            raise ConfigError("4 devices do not divide a table")
        needs, has = gib(topology.devices) * GIB, topology.memory
        return Result(topology.name, has, needs <= has, needs=int(needs))

    results = find_smallest(find(family), compile_one)
    return [(result.topology, result.fits) for result in results]


def test_sizes_are_tried_until_one_fits_or_a_larger_one_needs_no_less():
    small = [("v5e-1", False), ("v5e-8", False)]  # v5e-4 cannot hold the mesh

    assert smallest("v5e", lambda devices: 200 / devices) == [*small, ("v5e-16", True)]
    assert smallest("v5e", lambda _: 100) == small


def test_a_mistake_on_every_size_is_raised():
    with pytest.raises(ConfigError, match="4 devices"):
        smallest("v5e-4", lambda _: 1)


@pytest.fixture
def taught(tmp_path):
    """Returns the configuration file of a run whose base does not exist yet."""
    base = pretrain_config(tmp_path / "base", steps=9)
    optim = OptimConfig(method="smf", optimizer="sgd", learning_rate=1.0, top_t=5)
    base_file, run_dir = str(tmp_path / "base.py"), str(tmp_path / "taught")
    teach = FinetuneConfig(base=base_file, run_dir=run_dir, batch_size=4, optim=optim)
    for name, config in (("base", base), ("taught", teach)):
        (tmp_path / f"{name}.py").write_text(CONFIG_FILE.format(config=config))
    return str(tmp_path / "taught.py")


@needs_compilers
def test_the_step_of_a_run_is_planned_for_tpu(taught, capsys):
    options = ["--topology", "v5e-8", "--mesh.model", "2", "--json"]

    assert cli.main(["plan", taught, *options]) == 0

    (result,) = json.loads(capsys.readouterr().out)["v5e-8"]
    assert result["mesh"] == {"data": 4, "fsdp": 1, "model": 2}
    assert result["groups"]["memory values"] == 64 * 12 // 2 * 4  # by columns
    assert "all-reduce" in {each["kind"] for each in result["collectives"]}


@needs_compilers
def test_a_step_with_gpu_kernels_that_does_not_fit_ends_with_code_1(
    taught, capsys, monkeypatch
):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.000001")
    options = ["--topology", "h100x2", "--compute.lookup", "pallas"]

    assert cli.main(["plan", taught, *options]) == 1

    out = capsys.readouterr().out
    assert "h100x2: does not fit, needs at least" in out
    assert "--compute.remat" in out
