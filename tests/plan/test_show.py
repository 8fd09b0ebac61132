"""A plan is printed with its numbers, their units, and what to change."""

import io

import pytest
from rich.console import Console

from smf_jax import cli
from smf_jax.config import FinetuneConfig, ModelConfig, PretrainConfig
from smf_jax.plan.collectives import Collective
from smf_jax.plan.measure import Measured
from smf_jax.plan.outcome import Allocation, Outcome
from smf_jax.plan.show import NOT_TOLD, show
from tests.integration.commands import CONFIG_FILE

GIB = 2**30
CONFIG = PretrainConfig(run_dir="r", model=ModelConfig(memory=None))
MESH = {"data": 4, "fsdp": 1, "model": 2, "values": "columns"}
SUM = Collective("all-reduce", ("f32[6,10]", "f32[3]"), 4, ("data",), 5, 252, 378)
MEASURED = Measured(GIB, GIB, GIB, 2 * GIB, 3 * GIB, 4e12, 5.0 * GIB, False, [SUM])
AS_DICT = MEASURED._asdict() | {
    "sent": MEASURED.sent,
    "collectives": [SUM._asdict()],
}
FITS = Outcome(
    *("v5e-8", MESH, True),
    has=16 * GIB,
    needs=3 * GIB,
    groups={"dense parameters": GIB, "batch": 12},
    seconds=2.0,
    measured=AS_DICT,
)
LARGE = Outcome(
    *("v5e-4", MESH, False),
    has=16 * GIB,
    needs=30 * GIB,
    groups={"dense parameters": 20 * GIB},
    largest=[Allocation(GIB, "f32[7]", "dot")._asdict()] * 2,
)


def printed(plan) -> str:
    console = Console(file=io.StringIO(), width=100)
    show(plan, CONFIG, console)
    return console.file.getvalue()


def test_what_fits_is_printed_with_memory_work_and_exchanges():
    text = printed({"v5e-8": [FITS]})

    assert "v5e-8, data=4 fsdp=1 model=2 values=columns" in text
    for row in (("dense parameters", "1.00 GiB"), ("the most at once", "3.00 GiB")):
        assert any(all(word in line for word in row) for line in text.splitlines())
    assert "operations a step and device: 4e+12 FLOP" in text
    (line,) = (line for line in text.splitlines() if "all-reduce" in line)
    assert "f32[6,10] +1" in line
    assert "data" in line
    assert "1.85 KiB" in line  # 5 x 378
    assert text.splitlines()[-1].startswith("v5e-8 fits: needs 3.00 GiB of 16.00 GiB")


def test_what_a_compiler_does_not_tell_is_said_to_be_so():
    told = FITS._replace(measured=AS_DICT | {"flops": None, "accessed": None})

    assert printed({"h100x8": [told]}).count(NOT_TOLD) == 2


def test_what_does_not_fit_is_printed_with_the_largest_arrays_and_what_to_change():
    text = printed({"v5e-4": [LARGE]})

    assert "2 x 1.00 GiB" in text
    assert "--topology v5e-8: the next larger one, 8 chips" in text
    last = text.splitlines()[-1]
    assert last == "v5e-4 does not fit: needs at least 30.00 GiB of 16.00 GiB a device"


def test_of_several_the_one_that_fits_is_shown_behind_a_table_of_all():
    text = printed({"v5e": [LARGE, FITS]})

    assert "too large" in text
    assert "to change" not in text
    assert text.splitlines()[-1].startswith("v5e-8 fits")


# --- the command ---


@pytest.fixture
def refused(tmp_path, capsys):
    """Returns a function from a configuration and options to the line that refuses."""

    def run(config, *options) -> str:
        path = tmp_path / "config.py"
        path.write_text(CONFIG_FILE.format(config=config))
        assert cli.main(["plan", str(path), *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def test_an_unknown_topology_is_refused(refused):
    assert "--topology v5e-9 is none" in refused(CONFIG, "--topology", "v5e-9")


def test_a_base_that_is_not_made_must_be_named_by_its_configuration(refused):
    line = refused(FinetuneConfig(base="no/run", run_dir="r"), "--topology", "v5e-8")

    assert "no/run: no such run directory" in line
    assert "--base configs/NAME.py" in line


def test_without_a_configuration_it_is_refused_with_an_example(capsys):
    assert cli.main(["plan"]) == 2
    assert "smf plan configs/NAME.py" in capsys.readouterr().err
