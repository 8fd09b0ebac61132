"""Where a run begins: anew, or where it was interrupted; by one process alone."""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from smf_jax import checkpoint, distributed
from smf_jax.config import ConfigError, require
from smf_jax.data.tokenizer import Tokenizer
from smf_jax.train.loop import read_rows
from smf_jax.train.record import (
    CONFIG,
    METRICS,
    RECORD,
    TOKENIZER,
    WRITTEN,
    made_of,
    read_json,
    read_record,
    write_json,
    write_text,
)
from smf_jax.train.run import is_finished

LOCK = ".lock"
OURS = {LOCK, f"{CONFIG}.partial"}  # all that a run killed at its very start leaves
# What may be another when a run goes on: none of it changes what is computed, but for
# the last bits, as the order of sums does.
# What data, base and usage hold is compared by their hashes, not by where they lie.
FREE = (
    r"((pretrain|imported|retrofit|finetune)\.)?"
    r"(base|source|revision|run_dir|on_nan|save\..*|facts|data\.facts|data\.background"
    r"|mesh\..*|accumulate|reuse_prefix"
    r"|compute\.remat|compute\.scan_layers|compute\.lookup)"
)


class Resume(NamedTuple):
    """How a run treats what it finds in its directory."""

    mode: Literal["auto", "never", "must"] = "auto"
    allow_fallback: bool = False  # to an older checkpoint, if the latest is damaged


AUTO = Resume()


@contextlib.contextmanager
def claim(run_dir: str | Path) -> Iterator[Path]:
    """Makes the run directory, if need be, and holds it against other writers.

    The lock is the system's: with the process that holds it, it is gone. A directory
    in which nothing came to be is removed, and the lock's file from what is no run.

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
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except (NotADirectoryError, FileExistsError) as error:
        raise ConfigError(f"{run_dir} lies below a file, not a directory") from error
    with (run_dir / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            require(False, f"{run_dir} is being written by {holder}")
        # Whoever had it before may have removed the file in between.
        there = (run_dir / LOCK).exists() and (run_dir / LOCK).stat().st_ino
        require(
            there == os.fstat(lock.fileno()).st_ino,
            f"{run_dir} is being written by another process",
        )
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        lock.flush()
        try:
            yield run_dir
        finally:
            if not (run_dir / CONFIG).exists():
                (run_dir / LOCK).unlink()
                if made and not any(run_dir.iterdir()):
                    run_dir.rmdir()


def find_start(run_dir: Path, resume: Resume, console: Console) -> int | None:
    """Returns the step that a run goes on from, or None if it begins anew.

    Raises:
      ConfigError: A run that is finished, or what is no run, would be lost; the
        latest checkpoint is damaged; or `resume` wants it otherwise.
    """
    if distributed.is_main() and _is_record(run_dir / CONFIG):
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
        _require_none_lost(run_dir)
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
    older = "no older one is whole"
    if start is not None:
        older = f"--allow-fallback goes on from step {start}"
    require(
        not damaged or (resume.allow_fallback and start is not None),
        "; ".join([*damaged.values(), older]),
    )
    for problem in checkpoint.output_problems(run_dir, checkpoint.read(run_dir, start)):
        console.print(f"WARNING: {problem}", style="bold red")
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


def _require_none_lost(run_dir: Path) -> None:
    """Raises `ConfigError` where a run came so far that it had a checkpoint."""
    if not _is_record(run_dir / CONFIG):
        return
    every = made_of(read_record(run_dir)).save_every
    done = max((row["step"] for row in read_rows(run_dir / METRICS)), default=0)
    # The first is written by the time that the second is begun.
    require(
        done <= 2 * every,
        f"{run_dir} came to step {done} and has no checkpoint, as if it was removed or "
        "moved: bring it back, choose another run_dir or remove what is left",
    )


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

    What an unfinished run without a checkpoint left there is removed, and nothing else.

    Raises:
      ConfigError: The run was begun with other settings or of other things, all of
        which are listed.
    """
    distributed.require_same("configuration, code or data", record | {"start": start})
    if start is not None:
        _require_same(run_dir, read_record(run_dir), record, console)
        console.print(
            f"going on from step {start} of {made_of(record).steps} in {run_dir}",
            highlight=False,
        )
        return
    if distributed.is_main():
        # The record comes first and goes last: without it a folder is not ours.
        for name in (*WRITTEN, CONFIG):
            (run_dir / name).unlink(missing_ok=True)
        if (run_dir / "checkpoints").exists():
            shutil.rmtree(run_dir / "checkpoints")
        write_json(run_dir / CONFIG, record)
        write_text(run_dir / TOKENIZER, tokenizer.rules.to_str(pretty=True))
    distributed.wait_for_all("run directory is written")


def _require_same(run_dir, begun, now, console) -> None:
    same_code = ("versions", "git_commit")
    named = (*same_code, "config_hash")  # the hash is of what is listed anyway
    before, after = (
        {name: value for name, value in _flat(record).items() if name not in named}
        for record in (begun, now)
    )
    differences = {
        name: f"{name} was {before.get(name)}, now {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }
    free = {name for name in differences if re.fullmatch(FREE, name)}
    others = [line for name, line in differences.items() if name not in free]
    require(
        not others,
        f"{run_dir} was begun otherwise: {'; '.join(others)}. Run it as it was, or "
        "choose another run_dir",
    )
    if free:  # config.json stays as it was begun
        lines = "; ".join(differences[name] for name in sorted(free))
        console.print(f"from here on {lines}", highlight=False)
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
