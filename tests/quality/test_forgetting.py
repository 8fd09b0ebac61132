"""SMF learns new facts and keeps old ones; LoRA at its best learning rate does not.

The demo's recipes on 40 known and 12 new people, taught by questions. `forgetting.json`
holds the curves of three seeds, of which the test repeats the first. With 90 % of the
new facts learned, SMF has forgotten 2, 10 and 1 % of the old ones, and LoRA 48, 50 and
55 %: the bound lies a factor of 2 from either. After a change that is meant to move the
curves, this command runs all seeds and rewrites them:

    SMF_UPDATE_GOLDEN=1 python -m pytest tests/quality
"""

import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from smf_jax import demo
from smf_jax.config import LoraConfig, MemoryConfig, ModelConfig, WorldConfig
from smf_jax.evaluate.forgetting import CurvePoint, forgotten, known_at
from smf_jax.verbs.finetune import finetune
from smf_jax.verbs.pretrain import pretrain
from smf_jax.verbs.usage import collect_usage
from tests.tiny import ONE

GOLDEN = Path(__file__).with_name("forgetting.json")
UPDATE = bool(os.environ.get("SMF_UPDATE_GOLDEN"))
SEEDS = (0, 1, 2) if UPDATE else (0,)
PRETRAIN_STEPS, TEACH_STEPS, POINTS = 160, 60, 5
# LoRA at 1e-3 learns two thirds in these steps; in 150 all, and then forgets 40 %.
RATES = {"smf": (750.0,), "lora": (2e-3, 4e-3)}
TAUGHT = 0.9  # share of the new facts at which forgetting is compared
FORGOTTEN = 0.2  # share of the old facts: SMF forgets less, LoRA more
# Of taught and known: twice the most that optimized machine code, or one thread
# instead of two, moved any point.
TOLERANCE = (0.17, 0.06)


def make_base(out: Path, seed: int) -> str:
    """Pretrains a model, counts its usage, and returns its run directory."""
    config = demo.base_config(demo.DemoConfig(out=str(out), seed=seed))
    world = WorldConfig(
        known_people=40, new_people=12, first_names=40, last_names=60, seed=seed
    )
    memory = MemoryConfig(layers=(1,), num_keys=96, key_dim=32, value_dim=64)
    config = dataclasses.replace(
        config,
        steps=PRETRAIN_STEPS,
        mesh=ONE,
        model=ModelConfig(dim=48, num_layers=2, hidden_dim=96, memory=memory),
        data=dataclasses.replace(config.data, world=world, batch_size=8),
        optim=dataclasses.replace(config.optim, learning_rate=8e-3),
    )
    console = Console(file=io.StringIO())
    pretrain(config, console)
    collect_usage(config.run_dir, 30, console)
    return config.run_dir


def teach(method: str, rate: float, base: str, run_dir: Path, seed: int):
    """Teaches all new facts by one method, and returns its curve."""
    recipe = demo.WORLD_RECIPES[method]
    optim = dataclasses.replace(
        recipe.optim,
        warmup_steps=2 * TEACH_STEPS // 3 if method == "smf" else 4,
        top_t=1000,
        lora=LoraConfig(rank=16, alpha=32.0),
    )
    recipe = demo.Recipe(rate, optim, "questions", batch_size=16, steps=TEACH_STEPS)
    config = demo.finetune_config(recipe, base, str(run_dir), seed=seed)
    config = dataclasses.replace(config, mesh=ONE)
    return finetune(config, Console(file=io.StringIO())).curve()


@pytest.fixture(scope="module", params=SEEDS, ids="seed {}".format)
def curves(request, tmp_path_factory) -> dict[str, list[CurvePoint]]:
    """Returns the curve of each method at each of its rates."""
    seed, out = request.param, tmp_path_factory.mktemp("quality")
    base = make_base(out, seed)
    curves = {
        f"seed {seed}, {method} {rate:g}": teach(
            method, rate, base, out / f"{method}-{rate:g}", seed
        )
        for method, rates in RATES.items()
        for rate in rates
    }
    if UPDATE:
        record(curves)
    return curves


def record(curves: dict[str, list[CurvePoint]]) -> None:
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    lines = [
        f"{json.dumps(name)}: {json.dumps([[round(x, 4) for x in p] for p in curve])}"
        for name, curve in sorted((golden | curves).items())
    ]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def least_forgotten(curves: dict[str, list[CurvePoint]], method: str) -> float:
    """Returns what a method forgets, at its best rate, in learning `TAUGHT`."""
    of_method = [curve for name, curve in curves.items() if method in name]
    known = [(curve[0].known, known_at(curve, TAUGHT)) for curve in of_method]
    return min(forgotten(*pair) for pair in known if pair[1] is not None)


def test_the_base_knows_the_old_facts_and_none_of_the_new_ones(curves):
    for _, taught, held_out, known in (curve[0] for curve in curves.values()):
        assert known > 0.95
        assert max(taught, held_out) < 0.1


def test_smf_learns_the_new_facts_and_keeps_the_old_ones(curves):
    (curve,) = (curve for name, curve in curves.items() if "smf" in name)

    assert curve[-1].taught > TAUGHT
    assert forgotten(curve[0].known, curve[-1].known) < FORGOTTEN
    assert least_forgotten(curves, "smf") < FORGOTTEN


def test_lora_at_its_best_rate_forgets_more(curves):
    assert least_forgotten(curves, "lora") > FORGOTTEN


def test_the_curves_are_those_on_record(curves):
    golden = json.loads(GOLDEN.read_text())

    for name, curve in curves.items():
        got, want = np.array(curve), np.array(golden[name])
        np.testing.assert_array_equal(got[:, 0], want[:, 0])  # steps
        moved = np.abs(got - want)[:, [1, 3]]
        assert (moved <= TOLERANCE).all(), f"{name}: {got} is not {want}"
