"""The main job from nothing to a comparison: pretrain, collect usage, teach, ask."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from smf_jax import checkpoint
from smf_jax.config import (
    USAGE_DOCUMENTS,
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    Teach,
    WorldConfig,
    config_hash,
    require,
)
from smf_jax.data.corpus import load_corpus
from smf_jax.evaluate.forgetting import forgotten, kept_at
from smf_jax.train.finetune import Finetuned, finetune
from smf_jax.train.pretrain import collect_usage, pretrain
from smf_jax.train.run import (
    FRONTIER,
    REPORT,
    USAGE,
    is_finished,
    read_record,
    write_json,
)

SUMMARY, SWEEP = "summary.json", "sweep.json"
POINTS = 6  # of each method's curve, beside the one before any step


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
            final_fraction=0.05,
            weight_decay=0.01,
            clip_norm=1.0,
        ),
    )


SMF = OptimConfig(
    method="smf",
    optimizer="sgd",
    schedule="linear",
    # The first losses are the largest: at the full rate their steps would do most of
    # the harm of a whole run.
    warmup_steps=200,
    final_fraction=0.1,
    top_t=8000,
)
LORA = OptimConfig(
    method="lora", schedule="linear", warmup_steps=20, final_fraction=0.1
)
FULL = dataclasses.replace(LORA, method="full")

# The rate that forgot least at equal learning comes first, and is what the demo runs;
# README.md has the tables. Every method takes the same steps on the same batches.
WORLD_RECIPES = {
    "smf": Recipe((1500.0, 750.0, 3000.0), SMF),
    # The rates that forget least finish learning only if they hardly decay.
    "lora": Recipe((1e-3, 3e-4, 3e-3), dataclasses.replace(LORA, final_fraction=0.565)),
    "full": Recipe((3e-4, 1e-4, 1e-3), dataclasses.replace(FULL, final_fraction=0.565)),
}
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


def run(config: DemoConfig, console: Console) -> dict[str, Any]:
    """Runs the demo and returns what it wrote to `summary.json`.

    Raises:
      ConfigError: A file of the user's cannot be used.
    """
    recipes = WORLD_RECIPES if config.facts is None else FILE_RECIPES
    return walk(config, base_config(config), recipes, console)


def walk(
    config: DemoConfig,
    base: PretrainConfig,
    recipes: dict[str, Recipe],
    console: Console,
) -> dict[str, Any]:
    """Makes the base unless it is there, teaches it by each recipe, and compares."""
    start = time.perf_counter()
    out = Path(config.out)
    corpus = load_corpus(base.data)
    _pretrain_once(base, corpus.hash, console)
    for stale in (SUMMARY, SWEEP, REPORT, FRONTIER):
        (out / stale).unlink(missing_ok=True)
    if not (Path(base.run_dir) / USAGE).exists():
        collect_usage(base.run_dir, USAGE_DOCUMENTS, console)
    results, sweep = {}, []
    for name, recipe in recipes.items():
        best, *others = recipe.learning_rates
        for rate in (best, *others) if config.sweep else (best,):
            run_dir = out / (name if rate == best else f"sweep/{name}-{rate:g}")
            task = finetune_config(
                recipe, base.run_dir, str(run_dir), seed=config.seed, rate=rate
            )
            if task.batch_size > len(corpus.new):  # a short file is one batch
                task = dataclasses.replace(task, batch_size=len(corpus.new))
            _clear(run_dir, task)
            row = _summary(finetune(task, console))
            sweep.append({"method": name, "learning_rate": rate} | row)
            if rate == best:
                results[name] = row
    matched = min(row["learned"] for row in results.values())
    for row in [*results.values(), *sweep]:
        kept = kept_at(row["curve"], matched)
        row["forgotten_at_matched_learning"] = (
            None if kept is None else forgotten(row["before"], kept)
        )
    summary = {
        "seconds": time.perf_counter() - start,
        "config_hash": config_hash(config),
        "matched_learning": matched,
        "methods": results,
    }
    if config.sweep:
        write_json(out / SWEEP, sweep)
    write_json(out / SUMMARY, summary)
    console.print(table(summary))
    return summary


def _clear(run_dir: Path, task: FinetuneConfig) -> None:
    """Removes what an earlier demo taught, and nothing else.

    What an interrupted demo was teaching is left, to be gone on with.
    """
    if checkpoint.latest_step(run_dir) is None:
        return
    record = read_record(run_dir)
    require(
        (record["finetune"] or {}).get("base") == task.base,
        f"{run_dir} holds a run that this demo did not make: choose another --out",
    )
    if is_finished(run_dir) or record["config_hash"] != config_hash(task):
        shutil.rmtree(run_dir)


def _pretrain_once(base: PretrainConfig, corpus_hash: str, console: Console) -> None:
    """Pretrains, or goes on with it, unless this very model was finished here before.

    Raises:
      ConfigError: Another model was.
    """
    run_dir = Path(base.run_dir)
    if checkpoint.latest_step(run_dir) is not None and is_finished(run_dir):
        record = read_record(run_dir)
        require(
            record["config_hash"] == config_hash(base)
            and record["corpus_hash"] == corpus_hash,
            f"{run_dir} is the base of a demo with other settings or files: choose "
            "another --out, or remove it",
        )
        console.print(f"base model: taken from {run_dir}, trained before")
        return
    pretrain(base, console)


def _summary(taught: Finetuned) -> dict[str, Any]:
    first, *_, last = taught.curve()
    return {
        "learned": last.learned,
        "learned_held_out_wording": last.learned_held_out_wording,
        "before": first.kept,
        "after": last.kept,
        "forgotten": forgotten(first.kept, last.kept),
        "steps": last.step,
        "trainable": taught.trainable,
        "curve": taught.curve(),
    }


def table(summary: dict[str, Any]) -> Table:
    """Returns the comparison of a summary, to be printed."""
    matched = summary["matched_learning"]
    columns = ("method", "learned", "other wording", "old facts", "forgotten")
    shown = Table(*columns, f"at {matched:.2f} learned", "numbers a step may change")
    for name, row in summary["methods"].items():
        at_matched = row["forgotten_at_matched_learning"]
        shown.add_row(
            name,
            f"{row['learned']:.3f}",
            f"{row['learned_held_out_wording']:.3f}",
            f"{row['before']:.3f} -> {row['after']:.3f}",
            f"{row['forgotten']:.1%}",
            "" if at_matched is None else f"{at_matched:.1%}",
            f"{row['trainable']:,}",
        )
    return shown
