"""How the demo's base model is pretrained, and how each method teaches it."""

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
    require_seed,
)

EVALUATIONS = 5  # of each method, after the one before the first step


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Pretrain a small model, teach it new facts by every method, and compare.

    Needs no network.

    Example: smf demo --out runs/demo
    """

    out: str = "runs/demo"  # output directory
    facts: str | None = None  # JSONL(.gz) of facts; None: a synthetic world
    background: str | None = None  # JSONL(.gz) of texts; needs --facts
    seed: int = 0  # seed of the world, new parameters and data order
    seq_len: int = 64  # longest question with its answer, in tokens

    def __post_init__(self):
        require(
            self.facts is not None or self.background is None,
            "--background needs --facts: the synthetic world has its own text",
        )
        require_seed("demo", self)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a method teaches."""

    learning_rate: float  # the best in docs/reference/results.md
    optim: OptimConfig
    teach: Teach = "statements"  # so that questions are new to the model
    batch_size: int = 32  # facts per step
    steps: int = 300


def base_config(config: DemoConfig) -> PretrainConfig:
    """Returns the pretraining of the model that all methods start from."""
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
    """Returns the retrofit of the demo's base model without memory layers."""
    pretraining = base_config(DemoConfig())
    return RetrofitConfig(
        base=base,
        run_dir=run_dir,
        steps=400,
        memory=MemoryConfig(placement="add"),
        data=pretraining.data,
        optim=dataclasses.replace(pretraining.optim, method="memory", weight_decay=0.0),
    )


SMF = OptimConfig(
    method="smf",
    optimizer="sgd",
    schedule="linear",
    # The first losses are the largest: at the full rate, their steps would cause most
    # of a run's forgetting.
    warmup_steps=200,
    end_lr_fraction=0.1,
    top_t=8000,
)
LORA = OptimConfig(
    method="lora", schedule="linear", warmup_steps=20, end_lr_fraction=0.1
)
FULL = dataclasses.replace(LORA, method="full")

# The best rate forgets least at equal learning: see docs/reference/results.md. All
# methods take the same number of steps on the same batches.
WORLD_RECIPES = {
    "smf": Recipe(1500.0, SMF),
    # The best rates finish learning only with little decay.
    "lora": Recipe(1e-3, dataclasses.replace(LORA, end_lr_fraction=0.565)),
    "full": Recipe(3e-4, dataclasses.replace(FULL, end_lr_fraction=0.565)),
}
# For a retrofitted base. Its memory layer is added to the feed-forward with a scale
# below 1, so gradients of table rows are smaller.
RETROFIT_RECIPE = dataclasses.replace(WORLD_RECIPES["smf"], learning_rate=30_000.0)
FILE_RECIPES = {
    "smf": Recipe(350.0, SMF, teach="questions", batch_size=64),
    "lora": Recipe(1e-3, LORA, teach="questions", batch_size=64),
    "full": Recipe(3e-4, FULL, teach="questions", batch_size=64),
}


def finetune_config(
    recipe: Recipe, base: str, run_dir: str, *, seed: int = 0
) -> FinetuneConfig:
    """Returns the finetuning of a recipe."""
    return FinetuneConfig(
        base=base,
        run_dir=run_dir,
        teach=recipe.teach,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        eval_every=recipe.steps // EVALUATIONS,
        seed=seed,
        optim=dataclasses.replace(recipe.optim, learning_rate=recipe.learning_rate),
    )
