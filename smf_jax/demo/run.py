"""The main job from nothing to a comparison: pretrain, collect usage, teach, ask."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from smf_jax import checkpoint, multihost
from smf_jax.config import (
    USAGE_DOCUMENTS,
    FinetuneConfig,
    PretrainConfig,
    config_hash,
    require,
)
from smf_jax.data.corpus import load_corpus
from smf_jax.demo.recipes import (
    FILE_RECIPES,
    WORLD_RECIPES,
    DemoConfig,
    Recipe,
    base_config,
    finetune_config,
)
from smf_jax.evaluate.forgetting import CurvePoint, forgotten, kept_at
from smf_jax.runs.files import (
    FRONTIER,
    METRICS,
    REPORT,
    TEACHING,
    USAGE,
    read_json,
    write_json,
)
from smf_jax.runs.load import is_finished, load_run
from smf_jax.runs.lock import lock_run_dir
from smf_jax.runs.record import code_version, read_record
from smf_jax.verbs.finetune import Finetuned, finetune
from smf_jax.verbs.pretrain import pretrain
from smf_jax.verbs.usage import collect_usage

SUMMARY, SWEEP = "summary.json", "sweep.json"


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
    with lock_run_dir(config.out) as out:
        return _walk(config, base, recipes, out, console)


def _walk(config, base, recipes, out, console) -> dict[str, Any]:
    start = time.perf_counter()
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
            row = _taught_before(task)
            if row is None:
                taught = _teach(task, console)
                row = _summary(taught.curve(), taught.trainable)
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
    multihost.barrier("the summary is written")
    console.print(table(summary))
    return summary


def _taught_before(task: FinetuneConfig) -> dict[str, Any] | None:
    """Returns what an interrupted or earlier demo of the same code has taught."""
    run_dir = Path(task.run_dir)
    if not is_finished(run_dir):
        return None
    record = read_record(run_dir)
    same = (
        record["config_hash"] == config_hash(task)
        and record["base_hash"] == load_run(task.base).model_hash
        and {name: record[name] for name in code_version()} == code_version()
    )
    if not same:
        return None
    teaching = read_json(run_dir / TEACHING)
    curve = [CurvePoint(*point) for point in teaching["curve"]]
    return _summary(curve, teaching["trainable"])


def _teach(task: FinetuneConfig, console: Console) -> Finetuned:
    """Teaches, in place of what a demo taught before but an interrupted same task."""
    run_dir = Path(task.run_dir)
    if checkpoint.latest_step(run_dir) is not None:
        record = read_record(run_dir)
        require(
            (record["finetune"] or {}).get("base") == task.base,
            f"{run_dir} holds a run that this demo did not make: choose another --out",
        )
        if is_finished(run_dir) or record["config_hash"] != config_hash(task):
            with lock_run_dir(run_dir):
                if multihost.is_main():
                    _clear(run_dir)
            multihost.barrier("the run before is cleared")
    return finetune(task, console)


def _clear(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / METRICS).unlink(missing_ok=True)


def _pretrain_once(base: PretrainConfig, corpus_hash: str, console: Console) -> None:
    """Pretrains, or goes on with it, unless this very model was finished here before.

    Raises:
      ConfigError: Another model was.
    """
    run_dir = Path(base.run_dir)
    if is_finished(run_dir):
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


def _summary(curve: list[CurvePoint], trainable: int) -> dict[str, Any]:
    first, *_, last = curve
    return {
        "learned": last.learned,
        "learned_held_out_wording": last.learned_held_out_wording,
        "before": first.kept,
        "after": last.kept,
        "forgotten": forgotten(first.kept, last.kept),
        "steps": last.step,
        "trainable": trainable,
        "curve": curve,
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
