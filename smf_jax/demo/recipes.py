"""How the demo's base is made, and how each method teaches it."""

import dataclasses
from pathlib import Path

from smf_jax.config import (
    DataConfig,
    FinetuneConfig,
    MemoryConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RetrofitConfig,
    Teach,
    WorldConfig,
    require,
)

POINTS = 5  # of each method's curve, beside the one before any step


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Teach a small memory model new facts by every method, and compare.

    Needs no network and no account. Example: smf demo --out runs/demo
    """

    out: str = "runs/demo"  # where everything is written
    facts: str | None = None  # JSONL(.gz) of facts; None: the synthetic world
    background: str | None = None  # JSONL(.gz) of texts to pretrain on beside them
    seed: int = 0  # of the world, the parameters and every order
    seq_len: int = 64  # tokens of the longest question with its answer
    sweep: bool = False  # teach at every learning rate of a method, not the best alone

    def __post_init__(self):
        require(
            self.facts is not None or self.background is None,
            "--background goes with --facts: the synthetic world brings its own text",
        )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One method with the learning rates worth trying, the best first."""

    learning_rates: tuple[float, ...]
    optim: OptimConfig
    teach: Teach = "statements"  # the questions are then new to every method
    batch_size: int = 32  # facts
    steps: int = 300


def base_config(config: DemoConfig) -> PretrainConfig:
    """Returns how the model is made that the methods start from."""
    model = ModelConfig(hidden_dim=256)
    if config.facts is None:
        world = WorldConfig(seed=config.seed)
        data, steps = DataConfig(world=world, seq_len=config.seq_len), 750
    else:
        data = DataConfig(
            facts=config.facts,
            background=config.background,
            tokenizer="bpe",
            seq_len=config.seq_len,
        )
        steps = 1000
    return PretrainConfig(
        run_dir=str(Path(config.out) / "base"),
        steps=steps,
        seed=config.seed,
        model=model,
        data=data,
        optim=OptimConfig(
            optimizer="muon",
            learning_rate=5e-3,
            schedule="linear",
            warmup_steps=20,
            end_lr_fraction=0.05,
            weight_decay=0.01,
            max_grad_norm=1.0,
        ),
    )


def retrofit_config(base: str, run_dir: str) -> RetrofitConfig:
    """Returns how a base of the demo's world, made without memory, is given one."""
    made = base_config(DemoConfig())
    return RetrofitConfig(
        base=base,
        run_dir=run_dir,
        steps=400,
        memory=MemoryConfig(placement="add"),
        data=made.data,
        optim=dataclasses.replace(made.optim, method="memory", weight_decay=0.0),
    )


SMF = OptimConfig(
    method="smf",
    optimizer="sgd",
    schedule="linear",
    # The first losses are the largest: at the full rate their steps would do most of
    # the harm of a whole run.
    warmup_steps=200,
    end_lr_fraction=0.1,
    top_t=8000,
)
LORA = OptimConfig(
    method="lora", schedule="linear", warmup_steps=20, end_lr_fraction=0.1
)
FULL = dataclasses.replace(LORA, method="full")

# The rate that forgot least at equal learning comes first, and is what the demo runs;
# README.md has the tables. Every method takes the same steps on the same batches.
WORLD_RECIPES = {
    "smf": Recipe((1500.0, 750.0, 3000.0), SMF),
    # The rates that forget least finish learning only if they hardly decay.
    "lora": Recipe(
        (1e-3, 3e-4, 3e-3), dataclasses.replace(LORA, end_lr_fraction=0.565)
    ),
    "full": Recipe(
        (3e-4, 1e-4, 1e-3), dataclasses.replace(FULL, end_lr_fraction=0.565)
    ),
}
# Of a base that was given its memory afterwards. It stands beside the feed-forward with
# a scale below 1, so its rows have less of a gradient and must go further.
RETROFIT_RECIPE = dataclasses.replace(
    WORLD_RECIPES["smf"], learning_rates=(30_000.0, 15_000.0, 60_000.0)
)
FILE_RECIPES = {
    "smf": Recipe((350.0, 175.0, 700.0), SMF, teach="questions", batch_size=64),
    "lora": Recipe((1e-3, 3e-4, 3e-3), LORA, teach="questions", batch_size=64),
    "full": Recipe((3e-4, 1e-4, 1e-3), FULL, teach="questions", batch_size=64),
}


def finetune_config(
    recipe: Recipe, base: str, run_dir: str, *, seed: int = 0, rate: float | None = None
) -> FinetuneConfig:
    """Returns how a method teaches, at its best learning rate or another."""
    rate = recipe.learning_rates[0] if rate is None else rate
    return FinetuneConfig(
        base=base,
        run_dir=run_dir,
        teach=recipe.teach,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        eval_every=recipe.steps // POINTS,
        seed=seed,
        optim=dataclasses.replace(recipe.optim, learning_rate=rate),
    )
