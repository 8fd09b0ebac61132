"""Where a run begins: anew, or where it was interrupted; by one process alone."""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from flax import nnx
from jaxtyping import PyTree
from rich.console import Console
from tokenizers import Tokenizer

from smf_jax import checkpoint, distributed
from smf_jax.config import require
from smf_jax.optim.methods import Method
from smf_jax.train.run import (
    CONFIG,
    RECORD,
    TOKENIZER,
    is_finished,
    read_json,
    read_record,
    steps_of,
    write_json,
)
from smf_jax.train.step import TrainState

LOCK = ".lock"
OURS = {LOCK, f"{CONFIG}.partial"}  # all that a run killed at its very start leaves
# What may be another when a run goes on: none of it changes what is computed.
FREE = r"((pretrain|finetune)\.)?(base|run_dir|log_every|on_nan|save\..*)"


class Resume(NamedTuple):
    """How a run treats what it finds in its directory."""

    mode: Literal["auto", "never", "must"] = "auto"
    allow_fallback: bool = False  # to an older checkpoint, if the latest is damaged


AUTO = Resume()


@contextlib.contextmanager
def claim(run_dir: str | Path) -> Iterator[Path]:
    """Makes the run directory, if need be, and holds it against other writers.

    The lock is the system's: with the process that holds it, it is gone. A directory
    in which nothing came to be is removed.

    Raises:
      ConfigError: Another process writes there, or it is something else.
    """
    run_dir = Path(run_dir)
    if not distributed.is_main():
        yield run_dir
        return
    require(
        not run_dir.exists() or run_dir.is_dir(),
        f"{run_dir} exists and is no directory",
    )
    made = not run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            require(False, f"{run_dir} is being written by {holder}")
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        lock.flush()
        try:
            yield run_dir
        finally:
            content = {path.name for path in run_dir.iterdir()}
            if not content - {LOCK}:
                (run_dir / LOCK).unlink()
                if made:
                    run_dir.rmdir()


def find_start(run_dir: Path, resume: Resume, console: Console) -> int | None:
    """Returns the step that a run goes on from, or None if it begins anew.

    Raises:
      ConfigError: A run that is finished, or what is no run, would be lost; the
        latest checkpoint is damaged; or `resume` wants it otherwise.
    """
    if distributed.is_main():
        checkpoint.discard_debris(run_dir)
    distributed.wait_for_all("run directory is there")
    steps = checkpoint.steps(run_dir)
    if not steps:
        content = {path.name for path in run_dir.iterdir()} - OURS
        require(
            not content or _is_record(run_dir / CONFIG),
            f"{run_dir} exists and is no run directory: choose another run_dir",
        )
        require(resume.mode != "must", f"{run_dir} holds no checkpoint to go on from")
        distributed.wait_for_all("start is known")
        return None
    damaged = {}
    for step in reversed(steps):
        if not (problems := checkpoint.problems(run_dir, step)):
            break
        damaged[step] = "; ".join(problems)
    start = next((step for step in reversed(steps) if step not in damaged), None)
    if not damaged:
        require(
            not is_finished(run_dir),
            f"{run_dir} holds a finished run: choose another run_dir or remove it",
        )
    require(
        resume.mode != "never",
        f"{run_dir} holds a run interrupted after step {steps[-1]}: go on with it "
        "(--resume auto), choose another run_dir or remove it",
    )
    older = (
        "no older one is whole"
        if start is None
        else (f"--allow-fallback goes on from step {start}")
    )
    require(
        not damaged or (resume.allow_fallback and start is not None),
        "; ".join([*damaged.values(), older]),
    )
    for step, problem in damaged.items():
        console.print(
            f"WARNING: {problem}; going on from step {start} instead, so "
            f"{step - start} steps are done again",
            style="bold red",
        )
    distributed.wait_for_all("start is known")
    if distributed.is_main():
        for step in damaged:
            aside = checkpoint.set_aside(run_dir, step)
            console.print(f"WARNING: what is left of step {step} is now {aside}")
    return start


def _is_record(path: Path) -> bool:
    # Others call their files config.json, too.
    record = read_json(path) if path.is_file() else None
    return isinstance(record, dict) and record.keys() >= RECORD


def enter_run_dir(
    run_dir: Path,
    start: int | None,
    record: dict[str, Any],
    tokenizer: Tokenizer,
    console: Console,
) -> None:
    """Writes what a new run is, or checks that an interrupted one is the same.

    What an unfinished run without a checkpoint left there is removed.

    Raises:
      ConfigError: The run was begun with other settings or of other things, all of
        which are listed.
    """
    if start is not None:
        _require_same(run_dir, read_record(run_dir), record, console)
        console.print(
            f"going on from step {start} of {steps_of(record)} in {run_dir}",
            highlight=False,
        )
        return
    if distributed.is_main():
        # The record comes first and goes last: without it a folder is not ours.
        for path in sorted(run_dir.iterdir(), key=lambda path: path.name == CONFIG):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        write_json(run_dir / CONFIG, record)
        tokenizer.save(str(run_dir / TOKENIZER))
    distributed.wait_for_all("run directory is written")


def _require_same(run_dir, begun, now, console) -> None:
    same_code = ("versions", "git_commit")
    named = (*same_code, "config_hash")  # the hash is of what is listed anyway
    before, after = (
        {name: value for name, value in _flat(record).items() if name not in named}
        for record in (begun, now)
    )
    differences = [
        f"{name} was {before.get(name)}, now {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not re.fullmatch(FREE, name)
    ]
    require(
        not differences,
        f"{run_dir} was begun otherwise: {'; '.join(differences)}. Run it as it was, "
        "or choose another run_dir",
    )
    if any(begun[name] != now[name] for name in same_code):
        console.print(
            f"{run_dir} was begun with another version of this code or of a library "
            "(see its config.json): from here on the last bits may differ"
        )


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in record.items():
        if isinstance(value, dict) and name != "versions":
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            # As JSON has it: a tuple comes back as a list.
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def split_for_training(
    model: nnx.Module, method: Method
) -> tuple[nnx.GraphDef, TrainState, PyTree]:
    """Returns a model's structure, what trains with its optimizer state, and the rest.

    What trains is copied, since a step donates it and the model may be needed again.
    """
    graph, trainable, frozen = nnx.split(model, method.trainable, ...)
    trainable = jax.tree.map(jax.numpy.copy, nnx.as_pure(trainable))
    state = TrainState(
        trainable, jax.jit(method.tx.init)(trainable), jax.numpy.zeros((), "int32")
    )
    return graph, *distributed.place((state, nnx.as_pure(frozen)))


def abstract_split(
    model: nnx.Module, method: Method
) -> tuple[nnx.GraphDef, TrainState, PyTree]:
    """Returns what `split_for_training` does, for a model that has shapes alone."""
    graph, trainable, frozen = nnx.split(model, method.trainable, ...)
    trainable = nnx.as_pure(trainable)
    opt_state = jax.eval_shape(method.tx.init, trainable)
    skipped = jax.ShapeDtypeStruct((), "int32")
    return graph, TrainState(trainable, opt_state, skipped), nnx.as_pure(frozen)


def restore(
    run_dir: Path, step: int, state: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state of training after a step, and the progress saved with it.

    Of `state`, the shapes and types are looked at.
    """
    abstract = jax.eval_shape(lambda tree: tree, as_saved(state))
    loaded, record = checkpoint.load(run_dir, step, abstract)
    rest = loaded["optimizer"]
    state = TrainState(loaded["params"], rest["state"], rest["skipped"])
    return state, record.progress


def as_saved(state: TrainState) -> dict[str, PyTree]:
    """Returns the arrays of a checkpoint, in its parts."""
    optimizer = {"state": state.opt_state, "skipped": state.skipped}
    return {"params": state.trainable, "optimizer": optimizer}
