"""The configurations of the paper's model fit the devices of the benchmarks page."""

import json
import os
from pathlib import Path

import pytest

from smf_jax import cli
from smf_jax.cli.files import read_config
from smf_jax.cli.plan import KINDS

CONFIGS = Path(__file__).parents[2] / "configs"
MILLION = ("smf_triviaqa", "pretrain_1b")
MANY = ("smf_triviaqa_64m", "pretrain_1b_64m")
GIB = 2**30
EACH = pytest.mark.skipif(
    os.environ.get("SMF_PLAN_EACH") != "1",
    reason="takes minutes of CPU; SMF_PLAN_EACH=1 compiles for every topology",
)
# The last three are GiB per device, from benchmarks.md: table, peak, sent per step.
FITTING = [
    ("v5e-16", *MILLION, 1, 1.98, 0.99),
    pytest.param(("h100x8", *MILLION, 1, 3.11, 1.20), marks=EACH),
    pytest.param(("v5p-8", *MILLION, 1, 4.76, 1.50), marks=EACH),
    pytest.param(("v5p-128", *MANY, 4, 4.76, 1.39), marks=EACH),
]


def read(name: str):
    return read_config(CONFIGS / f"{name}.py", KINDS, "plan")


def plan(topology: str, smf: str, base: str, capsys) -> tuple[int, dict]:
    argv = ["plan", str(CONFIGS / f"{smf}.py"), "--base", str(CONFIGS / f"{base}.py")]
    # The scan compiles fewer blocks and changes none of the numbers checked here.
    argv += ["--texts", "64", "--compute.scan-layers", "--json"]
    code = cli.main([*argv, "--topology", topology])
    (result,) = json.loads(capsys.readouterr().out)[topology]
    return code, result


@pytest.mark.usefixtures("compilers")
@pytest.mark.parametrize("case", FITTING, ids=lambda case: case[0])
def test_a_step_of_smf_on_the_papers_model_needs_what_readme_says(case, capsys):
    topology, smf, base, table, needs, sent = case

    code, result = plan(topology, smf, base, capsys)

    assert (code, result["fits"], result["reason"]) == (0, True, None)
    assert result["needs"] / GIB == pytest.approx(needs, rel=0.05)
    assert result["groups"]["memory values"] == table * GIB
    total = sum(each["sent"] for each in result["collectives"])
    assert total / GIB == pytest.approx(sent, rel=0.05)


@pytest.mark.usefixtures("compilers")
def test_a_table_that_cannot_fit_is_reported_with_what_it_needs(capsys):
    code, result = plan("h100x4", *MANY, capsys)

    assert (code, result["fits"]) == (1, False)
    table = result["groups"]["memory values"]
    assert result["needs"] > table == 64 * GIB > result["capacity"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.stem)
def test_every_configuration_can_be_read(path):
    run_dir = read(path.stem).run_dir
    if path.stem.endswith("_own"):  # to be copied: named after the user's model
        assert run_dir.startswith("runs/model_")
    else:
        assert run_dir == f"runs/{path.stem}"


def test_all_methods_teach_the_papers_model_the_same_facts():
    smf, full, lora = (read(f"{method}_triviaqa") for method in ("smf", "full", "lora"))

    for name in ("base", "facts", "steps", "batch_size", "seq_len", "teach"):
        assert getattr(smf, name) == getattr(full, name) == getattr(lora, name)
    assert (smf.optim.method, smf.optim.top_t) == ("smf", 500)
    assert smf.optim.learning_rate == 2.0
