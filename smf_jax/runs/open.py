"""Opening a run directory to write: a new run, or one that resumes."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from smf_jax import checkpoint, multihost
from smf_jax.config import require
from smf_jax.data.tokenizer import Tokenizer
from smf_jax.runs.files import (
    CONFIG,
    METRICS,
    STALE_FILES,
    TOKENIZER,
    write_json,
    write_text,
)
from smf_jax.runs.jsonl import read_rows
from smf_jax.runs.load import is_finished
from smf_jax.runs.lock import LOCK, lock_run_dir
from smf_jax.runs.record import is_record, lineage_of, read_record

CODE = ("versions", "git_commit")  # of a record
LEFTOVERS = {LOCK, f"{CONFIG}.partial"}  # of a run killed before it wrote its record
# Settings that may change when a run resumes: they do not change what is computed,
# except for the last bits, by the order of sums. Data, base and usage are compared by
# their hashes, not by their paths.
MAY_CHANGE = (
    r"((pretrain|imported|retrofit|finetune)\.)?"
    r"(base|source|revision|run_dir|on_nan|save\..*"
    r"|((data|keep)\.)?(facts|patterns|background|fields|texts)"
    r"|mesh\..*|grad_accum_steps|reuse_prefix"
    r"|compute\.remat|compute\.scan_layers|compute\.lookup)"
)


class Resume(NamedTuple):
    """How a run treats an existing run directory."""

    mode: Literal["auto", "never", "must"] = "auto"
    allow_fallback: bool = False  # to an older checkpoint, if the latest is damaged


AUTO = Resume()


class OpenRun(NamedTuple):
    """A run directory that this process may write, and where training starts."""

    run_dir: Path
    start: int | None  # the checkpoint that it resumes from; None: a new run
    # JSON saved with the next checkpoint; at start, that of the last one
    progress: dict[str, Any]
    scores: dict[str, float]  # of the model as it is, for `save.best`
    console: Console

    def begin(self, record: dict[str, Any], tokenizer: Tokenizer) -> None:
        """Writes a new run's record, or raises unless a resumed one's is the same."""
        about = record | {"start": self.start}
        multihost.require_same("configuration, code or data", about)
        if self.start is not None:
            _require_same(self.run_dir, record, self.console)
            steps = lineage_of(record).steps
            line = f"{self.run_dir} is finished: {steps} steps"
            if self.start < steps:
                _warn_of_versions(self.run_dir, record, self.console)
                line = f"resuming {self.run_dir} from step {self.start} of {steps}"
            self.console.print(line)
            return
        if multihost.is_main():
            # config.json is deleted last and written first: it makes a folder a run.
            for name in (*STALE_FILES, CONFIG):
                (self.run_dir / name).unlink(missing_ok=True)
            if (self.run_dir / "checkpoints").exists():
                shutil.rmtree(self.run_dir / "checkpoints")
            write_json(self.run_dir / CONFIG, record)
            write_text(self.run_dir / TOKENIZER, tokenizer.json)
        multihost.barrier("run directory written")


@contextlib.contextmanager
def open_run(
    run_dir: str | Path, console: Console, resume: Resume = AUTO
) -> Iterator[OpenRun]:
    """Locks a run directory and finds the checkpoint to resume from, if there is one.

    Nothing is written before `OpenRun.begin`.

    Raises:
      ConfigError: Other files would be lost, the latest checkpoint is damaged, another
        process writes there, or `resume` demands otherwise.
    """
    with lock_run_dir(run_dir) as path:
        start = _find_start(path, resume, console)
        progress = {} if start is None else checkpoint.read(path, start).progress
        yield OpenRun(path, start, progress, {}, console)


def _find_start(run_dir: Path, resume: Resume, console: Console) -> int | None:
    """Returns the step of the checkpoint to resume from, or None for a new run."""
    if multihost.is_main() and is_record(run_dir / CONFIG):
        checkpoint.discard_debris(run_dir)
    multihost.barrier("run directory locked")
    steps = checkpoint.steps(run_dir)
    if not steps:
        _require_new(run_dir, resume)
        multihost.barrier("start found")
        return None
    damaged = {}
    for step in reversed(steps):
        if not (problems := checkpoint.problems(run_dir, step)):
            break
        damaged[step] = "; ".join(problems)
    start = next((step for step in reversed(steps) if step not in damaged), None)
    kind = f"a run interrupted after step {steps[-1]}: resume it (--resume auto),"
    if not damaged and is_finished(run_dir):
        kind = "a finished run:"
    require(
        resume.mode != "never",
        f"{run_dir} holds {kind} choose another run_dir or remove it",
    )
    older = "no older checkpoint is intact"
    if start is not None:
        older = f"--allow-fallback resumes from step {start}"
    require(
        not damaged or (resume.allow_fallback and start is not None),
        "; ".join([*damaged.values(), older]),
    )
    for problem in checkpoint.output_problems(run_dir, checkpoint.read(run_dir, start)):
        _warn(console, problem)
    for step, problem in damaged.items():
        fallback = f"resuming from step {start} repeats {step - start} steps"
        _warn(console, f"{problem}; {fallback}")
    multihost.barrier("start found")
    if multihost.is_main():
        for step in damaged:
            moved = checkpoint.set_aside(run_dir, step)
            console.print(f"WARNING: damaged checkpoint {step} renamed to {moved}")
    return start


def _require_new(run_dir: Path, resume: Resume) -> None:
    """Raises `ConfigError` unless a new run may use a directory without checkpoints."""
    exists = is_record(run_dir / CONFIG)
    content = {path.name for path in run_dir.iterdir()} - LEFTOVERS
    require(
        not content or exists,
        f"{run_dir} exists and is not a run directory: choose another run_dir",
    )
    require(resume.mode != "must", f"{run_dir} holds no checkpoint to resume from")
    if not exists:
        return
    every = lineage_of(read_record(run_dir)).save_every
    done = max((row["step"] for row in read_rows(run_dir / METRICS)), default=0)
    # The first checkpoint is written by the time that the second is started.
    require(
        done <= 2 * every,
        f"{run_dir} came to step {done} and has no checkpoint, as if it was removed or "
        "moved: bring it back, choose another run_dir or remove what is left",
    )


def _warn(console: Console, text: str) -> None:
    console.print(f"WARNING: {text}", style="bold red")


def _require_same(run_dir: Path, now: dict[str, Any], console: Console) -> None:
    skipped = (*CODE, "config_hash")  # the hash covers what is compared anyway
    before, after = (
        {name: value for name, value in _flat(record).items() if name not in skipped}
        for record in (read_record(run_dir), now)
    )
    differences = {
        name: f"{name} was {before.get(name)}, now {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }
    allowed = {name for name in differences if re.fullmatch(MAY_CHANGE, name)}
    refused = [line for name, line in differences.items() if name not in allowed]
    require(
        not refused,
        f"{run_dir} was started with other settings or inputs: {'; '.join(refused)}. "
        "Use the same ones, or choose another run_dir",
    )
    if allowed:  # config.json keeps the first ones
        lines = "; ".join(differences[name] for name in sorted(allowed))
        console.print(f"changed: {lines}")


def _warn_of_versions(run_dir: Path, now: dict[str, Any], console: Console) -> None:
    begun = read_record(run_dir)
    if any(begun[name] != now[name] for name in CODE):
        console.print(
            f"{run_dir} was started with another version of this code or of a library "
            "(see its config.json): the last bits may differ from here on"
        )


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in record.items():
        if isinstance(value, dict) and name != "versions":
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            # JSON has no tuples.
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
