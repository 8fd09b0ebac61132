"""How the demo's base model is pretrained, and how each method teaches it."""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

from smf_jax.config import (
    USAGE_DOCUMENTS,
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
    require_fields,
    require_seed,
)

WARMUP_STEPS = 20  # of pretraining


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Pretrain a small model, teach it new facts by every method, and compare.

    Needs no network.

    Example: smf demo --out runs/demo
    """

    out: str = "runs/demo"  # output directory
    # JSONL(.gz) of facts, or tfds:NAME; None: a synthetic world
    facts: str | None = None
    patterns: str | None = None  # JSONL(.gz) of patterns by relation, for wordings
    background: str | None = None  # JSONL(.gz) of texts, or tfds:NAME; needs --facts
    fields: str | None = None  # of tfds:NAME, such as question=FIELD,answers=FIELD
    new_fraction: float = 0.5  # share of `facts` to teach; the others are to be kept
    # small: a smaller model and fewer steps, for some hundred facts in a minute
    preset: Literal["full", "small"] = "full"
    steps: int | None = None  # of pretraining; None: as the preset says
    seed: int = 0  # seed of the world, new parameters and data order
    seq_len: int = 64  # longest question with its answer, in tokens

    def __post_init__(self):
        require(
            self.facts is not None or self.background is None,
            "--background needs --facts: the synthetic world has its own text",
        )
        require_fields(self.fields, self.facts, self.background)
        require_seed("demo", self)
        require(
            self.facts is not None or self.preset == "full",
            "--preset small is for --facts: the synthetic world needs the full one",
        )
        require(
            self.steps is None or self.steps > WARMUP_STEPS,
            f"--steps {self.steps} must be above the {WARMUP_STEPS} of the warmup",
        )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a method teaches."""

    learning_rate: float  # the best in docs/reference/results.md
    optim: OptimConfig
    teach: Teach = "statements"  # so that questions are new to the model
    batch_size: int = 32  # facts per step
    steps: int = 300
    evaluations: int = 5  # after the one before the first step


def base_config(config: DemoConfig) -> PretrainConfig:
    """Returns the pretraining of the model that all methods start from."""
    preset = PRESETS[config.preset]
    model, steps = preset.model, preset.steps
    if config.facts is None:
        world = WorldConfig(seed=config.seed)
        data, steps = DataConfig(world=world, seq_len=config.seq_len), 750
    else:
        data = DataConfig(
            facts=config.facts,
            patterns=config.patterns,
            background=config.background,
            fields=config.fields,
            new_fraction=config.new_fraction,
            tokenizer="bpe",
            vocab_size=preset.vocab_size,
            batch_size=preset.batch_size,
            seq_len=config.seq_len,
        )
    return PretrainConfig(
        run_dir=str(Path(config.out) / "base"),
        steps=config.steps or steps,
        seed=config.seed,
        model=model,
        data=data,
        optim=OptimConfig(
            optimizer="muon",
            learning_rate=5e-3,
            schedule="linear",
            warmup_steps=WARMUP_STEPS,
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
    "smf": Recipe(350.0, SMF, teach="both", batch_size=64),
    "lora": Recipe(1e-3, LORA, teach="both", batch_size=64),
    "full": Recipe(3e-4, FULL, teach="both", batch_size=64),
}


def _small(recipe: Recipe, learning_rate: float, **optim) -> Recipe:
    return dataclasses.replace(
        recipe,
        learning_rate=learning_rate,
        steps=100,
        evaluations=2,
        optim=dataclasses.replace(recipe.optim, **optim),
    )


# For some hundred facts.
SMALL_RECIPES = {
    "smf": _small(FILE_RECIPES["smf"], 3000.0, warmup_steps=33, top_t=4000),
    "lora": _small(FILE_RECIPES["lora"], 1e-3, warmup_steps=10),
    "full": _small(FILE_RECIPES["full"], 3e-4, warmup_steps=10),
}


class Preset(NamedTuple):
    """The sizes of a demo on files."""

    model: ModelConfig
    steps: int  # of pretraining
    vocab_size: int
    batch_size: int  # packed rows of a step, and of a background document
    documents: int  # of the background, for document frequencies
    recipes: dict[str, Recipe]


MODEL = ModelConfig(hidden_dim=256)  # also of the synthetic world
PRESETS = {
    "full": Preset(MODEL, 1000, 4096, 32, USAGE_DOCUMENTS, FILE_RECIPES),
    "small": Preset(
        dataclasses.replace(MODEL, num_layers=3), 120, 2048, 16, 60, SMALL_RECIPES
    ),
}
# What the rates rest on, for the reader of a comparison.
WORLD_RATES = (
    "Each method has the rate that forgets least at equal learning in this world, of a "
    "sweep by factors of 2 to 3 (docs/reference/results.md)."
)
FILE_RATES = (
    "No rate was swept on these facts: each method has one that served it on others. "
    "Another rate may serve it better here: sweep all of them before you rank them."
)


def recipes_of(config: DemoConfig) -> dict[str, Recipe]:
    """Returns how each method teaches the facts of a demo."""
    return WORLD_RECIPES if config.facts is None else PRESETS[config.preset].recipes


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
        eval_every=recipe.steps // recipe.evaluations,
        seed=seed,
        optim=dataclasses.replace(recipe.optim, learning_rate=recipe.learning_rate),
    )
