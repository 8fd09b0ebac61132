"""The loop around the step, and what it tells while it runs."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxtyping import PyTree
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from smf_jax import distributed
from smf_jax.config import ConfigError, require
from smf_jax.data.batches import Batch
from smf_jax.train.record import write_text
from smf_jax.train.setting import Background, Metrics, TrainState
from smf_jax.train.step import Step

Observe = Callable[[int, Metrics, Batch], None]
Log = Callable[[int, Metrics], None]
PLAIN_LINES = 10  # lines of progress a run prints where there is no terminal


class Trained(NamedTuple):
    """Where a stretch of training ended."""

    state: TrainState
    step: int  # the last one done
    loss: float  # of that step, in nats
    stopped: bool  # before its end, since it was told to


def train(
    step: Step,
    state: TrainState,
    frozen: PyTree,
    background: Background | None,
    batches: Iterator[Batch],
    share: Callable[[Batch], Batch],
    steps: range,
    observe: Observe,
    stop: Callable[[int], bool],
) -> Trained:
    """Does `steps`, at least one and numbered from 1, or fewer if told to `stop`.

    `share` gives each device its rows of a batch. `observe` gets the metrics of each
    step and its batch, one step late.
    """
    previous, stopped = None, False
    with distributed.naming_the_missing():
        for number in steps:
            distributed.mark(f"step {number}")
            batch = next(batches)
            state, metrics = step(state, frozen, background, share(batch))
            if previous is not None:  # one step late: this one is under way by now
                observe(*previous)
            previous = number, metrics, batch
            stopped = stop(number)
            if stopped:
                break
        observe(*previous)
    return Trained(state, number, float(previous[1]["loss"]), stopped)


def due_steps(done: int, steps: int, *intervals: int) -> Iterator[range]:
    """Yields the stretches after step `done` that end where something is due.

    That is at every multiple of an interval other than 0, and at the last step.
    """
    while done < steps:
        until = min([steps] + [(done // i + 1) * i for i in intervals if i])
        yield range(done + 1, until + 1)
        done = until


def is_due(step: int, steps: int, interval: int) -> bool:
    """Returns whether something is due at a step, as `due_steps` has it."""
    return step == steps or (interval > 0 and step % interval == 0)


@contextlib.contextmanager
def metrics_log(
    path: Path, title: str, done: int, steps: int, log_every: int, console: Console
) -> Iterator[Log]:
    """Yields a function that takes the metrics of each step in turn.

    Every `log_every` steps and at the last one it adds a line to `path`, with the
    loss (nats), seconds since the start and tokens per second since the line before,
    and moves the progress bar; without a terminal it prints ten lines in all. Lines
    of steps after `done` are from before an interruption, and are taken away.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    rows = keep_rows(path, done) if distributed.is_main() else []
    start = since = time.perf_counter()
    before = rows[-1].get("seconds", 0.0) if rows else 0.0
    tokens = 0
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("a")) if distributed.is_main() else None
        progress = stack.enter_context(bar)
        task = progress.add_task(title, total=steps, completed=done, status="")

        def log(step: int, metrics: Metrics) -> None:
            nonlocal since, tokens
            tokens += metrics["tokens"]
            if not is_due(step, steps, log_every):
                return
            numbers = {n: float(v) for n, v in metrics.items() if n not in _GUARDS}
            now = time.perf_counter()
            speed = float(tokens) / (now - since)
            since, tokens = now, 0
            times = {"seconds": before + now - start, "tokens_per_second": speed}
            # JSON has no NaN.
            row = {n: v if math.isfinite(v) else None for n, v in numbers.items()}
            if file is not None:
                file.write(json.dumps({"step": step} | row | times) + "\n")
                file.flush()
            status = f"loss {numbers['loss']:.4f}  {speed:,.0f} tokens/s"
            if "slots_written" in numbers:
                status += f"  {numbers['slots_written']:,.0f} slots written"
            progress.update(task, completed=step, status=status)
            if not console.is_terminal and _has_line(step, steps, log_every):
                left = (steps - step) * (now - start) / (step - done)
                line = f"{title} {step}/{steps}  {status}  {left:.0f} s left"
                console.print(line, soft_wrap=True, highlight=False)

        yield log


_GUARDS = ("updated", "skipped")  # what the guard reads of the metrics


def read_rows(path: Path) -> list[dict]:
    """Returns the rows of a JSONL file of steps, or none if there is no file.

    A last line that was cut short, as a killed process leaves it, is no row.

    Raises:
      ConfigError: Another line is no row.
    """
    content = path.read_bytes() if path.exists() else b""
    try:
        rows = [json.loads(line) for line in content.split(b"\n")[:-1]]
        whole = all(isinstance(row["step"], int) for row in rows)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    require(whole, f"{path} is damaged: a step is no number")
    return rows


def keep_rows(path: Path, done: int) -> list[dict]:
    """Returns the rows of a JSONL file up to step `done`, and keeps only them."""
    rows = [row for row in read_rows(path) if row["step"] <= done]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _has_line(step: int, steps: int, log_every: int) -> bool:
    every = max(steps // PLAIN_LINES, 1)
    return step == steps or step // every > (step - log_every) // every
