"""Steps are compiled in a process of their own, for devices that are not here."""

import functools
import json

import pytest

from smf_jax import cli
from smf_jax.config import FinetuneConfig, OptimConfig
from smf_jax.plan.compile import compile_apart
from smf_jax.plan.topology import find
from tests.integration.commands import CONFIG_FILE
from tests.plan.compilers import require_compilers
from tests.tiny import pretrain_config

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


# --- the command, on the real step of a run ---


@pytest.fixture
def taught(tmp_path):
    """Returns the configuration file of a run whose base is not made yet."""
    base = pretrain_config(tmp_path / "base", steps=9)
    teach = FinetuneConfig(
        base=str(tmp_path / "base.py"),
        run_dir=str(tmp_path / "taught"),
        steps=9,
        batch_size=4,
        optim=OptimConfig(method="smf", optimizer="sgd", learning_rate=1.0, top_t=5),
    )
    for name, config in (("base", base), ("taught", teach)):
        (tmp_path / f"{name}.py").write_text(CONFIG_FILE.format(config=config))
    return str(tmp_path / "taught.py")


@pytest.mark.parametrize("name", ["v5e-8", "h100x8"])
def test_the_step_of_a_run_is_planned(taught, capsys, name):
    code = cli.main(["plan", taught, "--topology", name, "--mesh.model", "2", "--json"])

    assert code == 0
    (outcome,) = json.loads(capsys.readouterr().out)[name]
    assert outcome["mesh"] == {"data": 4, "fsdp": 1, "model": 2, "values": "columns"}
    assert outcome["groups"]["memory values"] == 64 * 12 // 2 * 4  # split by columns
    # Rows that are to be written are summed over `data`; the table goes nowhere.
    arrays = [
        array for of in outcome["measured"]["collectives"] for array in of["arrays"]
    ]
    assert any("[5,6]" in array or "[31]" in array for array in arrays)
    assert not any("[64," in array for array in arrays)


def test_a_run_that_does_not_fit_ends_with_code_1_and_what_to_change(taught, capsys):
    base = taught.replace("taught.py", "base.py")
    large = ["--data.batch-size", "200000"]  # of logits alone 73 GiB

    code = cli.main(["plan", base, "--topology", "h100x1", *large])

    assert code == 1
    out = capsys.readouterr().out
    assert "h100x1 does not fit: needs" in out
    assert "--topology h100x2" in out
