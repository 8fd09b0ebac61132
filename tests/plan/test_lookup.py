"""What sums a memory's rows, compiled at the paper's size for what is not here."""

import json
import os
import subprocess
import sys

import pytest

from smf_jax import cli
from smf_jax.plan.compile import ENVIRONMENT, NO_TRIALS
from tests.integration.commands import CONFIG_FILE
from tests.plan.compilers import require_compilers
from tests.tiny import pretrain_config

require_compilers()

NUM_SLOTS, TOKENS = 1024**2, 4096
MIB = 2**20
# value_dim, type, and how many of: sums, gradient of weights, gradient of the table.
# That one is summed in float32, and rounded to the type of the table then.
USUAL = [(1024, "float32", 3), (1024, "bfloat16", 2)]
ODD = (576, "float32", 1)
NARROW = (16, "float32", 3, 8)  # and the reads of a token: ids that fill few lanes
NAMES = ("v5e-1", "h100x1")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Returns what each case needs, all compiled by one process."""
    path = tmp_path_factory.mktemp("lookup") / "measured.json"
    cases = [(name, *case) for name in NAMES for case in (*USUAL, ODD, NARROW)]
    keys = ("name", "value_dim", "dtype", "outputs", "reads")
    subprocess.run(
        [sys.executable, "-m", "tests.plan.lookup", str(path)],
        input=json.dumps([dict(zip(keys, case, strict=False)) for case in cases]),
        env=os.environ | ENVIRONMENT | {"XLA_FLAGS": NO_TRIALS},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return dict(zip(cases, json.loads(path.read_text()), strict=True))


@pytest.mark.parametrize("case", USUAL, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_hold_neither_rows_before_their_sum_nor_a_copy_of_the_table(
    measured, name, case
):
    value_dim, dtype, outputs = case
    found = measured[(name, *case)]

    size = {"float32": 4, "bfloat16": 2}[dtype]
    table, sums = NUM_SLOTS * value_dim * size, TOKENS * value_dim * size
    assert found["kernels"] == outputs + (name == "h100x1" and outputs == 3)
    assert found["arguments"] >= table
    assert found["outputs"] >= sums + (table if outputs == 3 else 0)
    # Rows before their sum would be 1 or 2 GiB, a table 2 or 4.
    assert found["temporary"] < 64 * MIB


def test_a_table_whose_rows_are_no_whole_tiles_is_copied_on_tpu_alone(measured):
    tpu, gpu = (measured[(name, *ODD)]["temporary"] for name in NAMES)

    assert tpu > NUM_SLOTS * 576 * 4
    assert gpu < 64 * MIB


@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_compiled_for_few_reads_of_narrow_rows(measured, name):
    want = {"v5e-1": 3, "h100x1": 4}  # where two make the table's gradient
    assert measured[(name, *NARROW)]["kernels"] == want[name]


def test_the_step_of_a_run_is_planned_with_kernels(tmp_path, capsys):
    path = tmp_path / "base.py"
    path.write_text(CONFIG_FILE.format(config=pretrain_config("base", steps=9)))
    mesh = ["--mesh.fsdp", "2", "--mesh.model", "2", "--mesh.values", "slots"]
    lookup = ["--compute.lookup", "pallas"]

    code = cli.main(
        ["plan", str(path), "--topology", "v5e-8", *mesh, *lookup, "--json"]
    )

    (outcome,) = json.loads(capsys.readouterr().out)["v5e-8"]
    assert (code, outcome["fits"]) == (0, True)
