"""Checking a run: every file of its checkpoints, and every number they hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from smf_jax import checkpoint
from smf_jax.config import ConfigError, require
from smf_jax.slots import patch, usage
from smf_jax.train.record import PATCH, USAGE
from smf_jax.train.run import Run, is_finished, load_run, tell_unhealed


def verify(run_dir: Path, console: Console) -> bool:
    """Prints what is wrong with a run, names its parameters; returns if it is sound.

    Raises:
      ConfigError: It is no run.
    """
    require(run_dir.is_dir(), f"{run_dir}: no such run directory")
    steps = checkpoint.steps(run_dir)
    require(len(steps) > 0, f"{run_dir} holds no checkpoint")

    def tell(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    wrong = []
    for step in steps:
        problems = checkpoint.problems(run_dir, step)
        files = 0 if problems else len(checkpoint.read(run_dir, step).files)
        tell(f"step {step}: {'damaged' if problems else f'{files} files as written'}")
        wrong += problems
    if not wrong:
        try:
            run = load_run(run_dir, steps[-1])
            state = "finished" if is_finished(run_dir) else "interrupted"
            tell(f"run: {state}, step {steps[-1]} of {run.made.steps}")
            tell(f"params sha256 {run.model_hash}")
            wrong += _beside(run_dir, run)
            if not wrong:
                tell_unhealed(run, console)
        except ConfigError as error:
            wrong.append(str(error))
    for problem in wrong:
        tell(f"WRONG {problem}")
    return not wrong


def _beside(run_dir: Path, run: Run) -> list[str]:
    """Returns what is wrong with what a run wrote of itself."""
    wrong = checkpoint.output_problems(run_dir, checkpoint.read(run_dir, run.step))
    memory = run.model.config.memory
    if memory is not None and (run_dir / USAGE).exists():
        shape = (memory.num_pools, memory.num_slots)
        wrong += _refusal(usage.load, run_dir / USAGE, run.model_hash, *shape)
    if (run_dir / PATCH).exists():
        wrong += _refusal(patch.load, run_dir / PATCH)
    return wrong


def _refusal(read: Callable[..., Any], *arguments: Any) -> list[str]:
    try:
        read(*arguments)
    except ConfigError as error:
        return [str(error)]
    return []
