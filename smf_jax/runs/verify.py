"""Verifies a run: every file of its checkpoints, and every number in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from smf_jax import checkpoint
from smf_jax.config import ConfigError, require
from smf_jax.runs.files import EVALUATION, PATCH, USAGE, read_result
from smf_jax.runs.load import Run, is_finished, load_run, warn_unhealed
from smf_jax.slots import document_frequency, patch, sparse_table


def verify(run_dir: Path, console: Console) -> bool:
    """Prints all damage to a run and the hash of its parameters; returns if intact."""
    require(run_dir.is_dir(), f"{run_dir}: no such run directory")
    steps = checkpoint.steps(run_dir)
    require(len(steps) > 0, f"{run_dir} holds no checkpoint")

    damage = []
    for step in steps:
        problems = checkpoint.problems(run_dir, step)
        files = 0 if problems else len(checkpoint.read(run_dir, step).files)
        console.print(
            f"step {step}: {'damaged' if problems else f'{files} files intact'}"
        )
        damage += problems
    if not damage:
        try:
            run = load_run(run_dir, steps[-1])
            state = "finished" if is_finished(run_dir) else "interrupted"
            console.print(f"run: {state}, step {steps[-1]} of {run.lineage.steps}")
            console.print(f"params sha256 {run.model_hash}")
            damage += _output_damage(run_dir, run)
            if not damage:
                warn_unhealed(run, console)
        except ConfigError as error:
            damage.append(str(error))
    for problem in damage:
        console.print(f"DAMAGED {problem}")
    return not damage


def _output_damage(run_dir: Path, run: Run) -> list[str]:
    """Returns what is wrong with the files beside the checkpoints."""
    damage = checkpoint.output_problems(run_dir, checkpoint.read(run_dir, run.step))
    memory = run.model.config.memory
    if memory is not None and (run_dir / USAGE).exists():
        expected = [run.model_hash]
        load = sparse_table.load_usage
        if memory.num_rows is None:
            expected += [memory.num_tables, memory.num_slots]
            load = document_frequency.load
        damage += _refusal(load, run_dir / USAGE, *expected)
    if (run_dir / PATCH).exists():
        damage += _refusal(patch.load, run_dir / PATCH)
    for path in sorted(run_dir.glob(f"{Path(EVALUATION).stem}*.json")):
        damage += _refusal(read_result, path)
    return damage


def _refusal(read: Callable[..., Any], *arguments: Any) -> list[str]:
    try:
        read(*arguments)
    except ConfigError as error:
        return [str(error)]
    return []
