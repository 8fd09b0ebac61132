"""A plan is printed with its numbers, their units, and what to change."""

import dataclasses
import io
import re

import pytest
import tyro
from rich.console import Console

from smf_jax import cli
from smf_jax.config import FinetuneConfig, PretrainConfig
from smf_jax.plan.collectives import Collective
from smf_jax.plan.compile import Result
from smf_jax.plan.report import format_bytes, show, verdict, what_to_change
from tests.integration.commands import CONFIG_FILE

GIB = 2**30
PRETRAIN = PretrainConfig(run_dir="r")
FINETUNE = FinetuneConfig(base="b", run_dir="r")
MESH = {"data": 8, "fsdp": 1, "model": 1}
SENT = [
    Collective("collective-permute", ("data", "fsdp", "model"), 12345, 1023 * GIB),
    Collective("all-gather", ("fsdp",), 2, 1890),
]
FITS = Result("v5e-8", 16 * GIB, True, None, MESH, 3 * GIB, {"batch": 12}, GIB, GIB)
FITS = dataclasses.replace(FITS, flops=4e12, collectives=SENT)


def large(topology="v5e-8", needs=20, **groups) -> Result:
    """Returns a result that does not fit; all sizes in GiB."""
    sizes = {name.replace("_", " "): of * GIB for name, of in groups.items()}
    needs = needs and needs * GIB
    return Result(topology, 16 * GIB, False, None, MESH, needs, sizes)


def printed(*results) -> str:
    console = Console(file=io.StringIO(), width=80)
    show(results, PRETRAIN, console)
    return console.file.getvalue()


def test_a_step_that_fits_is_printed_with_memory_flops_and_collectives():
    lines = [re.sub(r"[^\w.,:+-]+", " ", line) for line in printed(FITS).splitlines()]

    rows = ["batch 12 B", "temporaries 1.00 GiB", "peak 3.00 GiB", "once: 4e+12"]
    rows += ["collective-permute data, fsdp, model 12345 1023.00 GiB"]
    rows += ["all-gather fsdp 2 1.85 KiB", "total 1023.00 GiB", verdict(FITS)]
    assert [row for row in rows if not any(row in line for line in lines)] == []


def test_nothing_is_wider_than_80_columns_and_no_header_is_wrapped():
    both = printed(FITS), printed(large("h100x8", parameters=9, memory_values=9))

    assert max(len(line) for text in both for line in text.splitlines()) <= 80
    assert "sent per device" in both[0]


def test_of_a_family_the_last_size_is_printed_and_the_verdict_on_each():
    last = dataclasses.replace(FITS, topology="h100x8", flops=None)

    lines = printed(large("h100x4"), last).splitlines()

    assert lines[-2:] == [verdict(large("h100x4")), verdict(last)]
    assert "h100x8" in lines
    assert "FLOPs per device and step, each loop counted once: unknown" in lines
    assert "options that reduce memory:" not in lines


def test_a_verdict_names_the_memory_needed_and_available():
    unknown = Result("v5e-8", 16 * GIB, reason="compiling took longer")

    assert verdict(FITS) == "v5e-8: fits, needs 3.00 GiB of 16.00 GiB per device"
    line = "v5e-8: does not fit, needs at least 20.00 GiB of 16.00 GiB per device"
    assert verdict(large()) == line
    assert verdict(unknown) == "v5e-8: no answer: compiling took longer"
    assert [format_bytes(n) for n in (0, 1023, 1536)] == ["0 B", "1023 B", "1.50 KiB"]


@pytest.mark.parametrize("needs", [20, None])
def test_large_activations_are_reduced(needs):
    lines = "\n".join(what_to_change(large(needs=needs, parameters=1), PRETRAIN))

    for option in (
        "--compute.remat",
        "--compute.activations bfloat16",
        "--grad-accum-steps",
    ):
        assert option in lines
    assert "--mesh" not in lines
    assert "--topology v5e: " in lines


def test_large_parameters_and_tables_are_split():
    few_activations = large(parameters=10, memory_values=9)
    lines = "\n".join(what_to_change(few_activations, PRETRAIN))

    assert "--mesh.fsdp 8" in lines
    assert "--mesh.values everywhere" in lines
    assert "--compute" not in lines


@pytest.mark.parametrize("config", [PRETRAIN, FINETUNE])
def test_advised_options_can_be_typed(config):
    lines = what_to_change(large("h100x8", needs=40, memory_values=18), config)

    flags = [line.split(":")[0].split() for line in lines if " --" in line]
    assert len(flags) == 6
    for args in flags[:-1]:  # the last is of the command, not of the run
        options = {"args": args, "config": (tyro.conf.AvoidSubcommands,)}
        assert tyro.cli(type(config), default=config, **options) != config


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        (PRETRAIN, "v5e-9", "--topology v5e-9 is unknown; .* v5e-"),
        (FINETUNE, "v5e-8", "b: no such run directory; .* --base configs/NAME.py"),
    ],
)
def test_a_mistake_is_refused_in_one_line(tmp_path, capsys, config, name, message):
    path = tmp_path / "config.py"
    path.write_text(CONFIG_FILE.format(config=config))

    assert cli.main(["plan", str(path), "--topology", "v5e-4", name]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
