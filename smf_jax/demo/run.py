"""The demo: pretrain, count usage, teach by every method, compare."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from rich import box
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
    EVALUATION,
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
from smf_jax.verbs.finetune import finetune
from smf_jax.verbs.pretrain import pretrain
from smf_jax.verbs.usage import collect_usage

SUMMARY = "summary.json"


def run(config: DemoConfig, console: Console) -> None:
    """Runs the demo, and writes `summary.json` into `config.out`.

    Raises:
      ConfigError: A file cannot be used, or `config.out` holds other runs.
    """
    recipes = WORLD_RECIPES if config.facts is None else FILE_RECIPES
    compare(config, base_config(config), recipes, console)


def compare(
    config: DemoConfig,
    base: PretrainConfig,
    recipes: dict[str, Recipe],
    console: Console,
) -> None:
    """Pretrains the base unless that is done, teaches it by each recipe, and compares.

    Raises:
      ConfigError: As by `run`.
    """
    with lock_run_dir(config.out) as out:
        start = time.perf_counter()
        corpus = load_corpus(base.data)
        _pretrain_once(base, corpus.hash, console)
        for stale in (SUMMARY, REPORT, FRONTIER):
            (out / stale).unlink(missing_ok=True)
        if not (Path(base.run_dir) / USAGE).exists():
            collect_usage(base.run_dir, USAGE_DOCUMENTS, console)
        methods = {}
        for name, recipe in recipes.items():
            run_dir = str(out / name)
            task = finetune_config(recipe, base.run_dir, run_dir, seed=config.seed)
            size = min(task.batch_size, len(corpus.new))
            task = dataclasses.replace(task, batch_size=size)
            methods[name], n = _teach_once(task, console)
        matched = min(row["learned"] for row in methods.values())
        for row in methods.values():
            kept = kept_at(row["curve"], matched)
            row["forgotten_at_matched_learning"] = (
                None if kept is None else forgotten(row["before"], kept)
            )
        summary = {
            "seconds": time.perf_counter() - start,
            "config_hash": config_hash(config),
            "matched_learning": matched,
            "n": n,
            "methods": methods,
        }
        write_json(out / SUMMARY, summary)
        multihost.barrier("summary written")
        _print_summary(summary, console)


def _pretrain_once(base: PretrainConfig, corpus_hash: str, console: Console) -> None:
    """Pretrains the base, or resumes that, unless it is finished.

    Raises:
      ConfigError: Another base is finished.
    """
    run_dir = Path(base.run_dir)
    if not is_finished(run_dir):
        pretrain(base, console)
        return
    record = read_record(run_dir)
    require(
        record["config_hash"] == config_hash(base)
        and record["corpus_hash"] == corpus_hash,
        f"{run_dir} is the base of a demo with other settings or files: choose another "
        "--out or remove it",
    )
    console.print(f"base model: {run_dir}, already pretrained")


def _teach_once(
    task: FinetuneConfig, console: Console
) -> tuple[dict[str, Any], dict[str, int]]:
    """Teaches, or resumes that, unless it is finished by the same code.

    Returns:
      The row of the summary, and the number of questions of each group.
    """
    run_dir = Path(task.run_dir)
    if not _is_taught(task):
        _clear(task)
        finetune(task, console)
    teaching = read_json(run_dir / TEACHING)
    curve = [CurvePoint(*point) for point in teaching["curve"]]
    first, *_, last = curve
    row = {
        "learned": last.learned,
        "learned_held_out_wording": last.learned_held_out_wording,
        "before": first.kept,
        "after": last.kept,
        "forgotten": forgotten(first.kept, last.kept),
        "steps": last.step,
        "trainable": teaching["trainable"],
        "curve": curve,
    }
    answers = read_json(run_dir / EVALUATION)["answers"]
    return row, {group: len(replies) for group, replies in answers.items()}


def _is_taught(task: FinetuneConfig) -> bool:
    """Returns whether this code has finished the task, over this base."""
    run_dir, code = Path(task.run_dir), code_version()
    if not is_finished(run_dir):
        return False
    record = read_record(run_dir)
    return (
        record["config_hash"] == config_hash(task)
        and {name: record[name] for name in code} == code
        and record["base_hash"] == load_run(task.base).model_hash
    )


def _clear(task: FinetuneConfig) -> None:
    """Removes an earlier run of the demo that the task cannot resume.

    Raises:
      ConfigError: No demo has written it.
    """
    run_dir = Path(task.run_dir)
    if checkpoint.latest_step(run_dir) is None:
        return
    record = read_record(run_dir)
    require(
        (record["finetune"] or {}).get("base") == task.base,
        f"{run_dir} holds a run that this demo did not write: choose another --out",
    )
    if is_finished(run_dir) or record["config_hash"] != config_hash(task):
        with lock_run_dir(run_dir):
            if multihost.is_main():
                shutil.rmtree(run_dir / "checkpoints")
                (run_dir / METRICS).unlink(missing_ok=True)
        multihost.barrier("earlier run removed")


def _print_summary(summary: dict[str, Any], console: Console) -> None:
    table = Table(box=box.SIMPLE, padding=(0, 0, 0, 1))
    table.add_column("method", no_wrap=True)
    for column in ("learned", "reworded", "kept", "forgotten", "at equal", "trainable"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in summary["methods"].items():
        at_matched = row["forgotten_at_matched_learning"]
        table.add_row(
            name,
            f"{row['learned']:.3f}",
            f"{row['learned_held_out_wording']:.3f}",
            f"{row['before']:.3f} -> {row['after']:.3f}",
            f"{row['forgotten']:.1%}",
            "" if at_matched is None else f"{at_matched:.1%}",
            f"{row['trainable']:,}",
        )
    console.print(table)
    n = summary["n"]
    console.print(
        f"n: learned {n['taught']:,}, reworded {n['held_out']:,}, kept {n['known']:,}\n"
        f"at equal: forgotten at {summary['matched_learning']:.3f} learned\n"
        "trainable: parameters that a step may change",
        highlight=False,
    )
