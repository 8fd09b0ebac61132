"""The loop around the step, and what it tells while it runs."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxtyping import PyTree
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from smf_jax.data.batches import Batch
from smf_jax.train.step import Background, Metrics, Step, TrainState

Log = Callable[[int, Metrics], None]
PLAIN_LINES = 10  # lines of progress a run prints where there is no terminal


def train(
    step: Step,
    state: TrainState,
    frozen: PyTree,
    background: Background | None,
    batches: Iterator[Batch],
    steps: range,
    log: Log,
) -> TrainState:
    """Returns the state after `steps`, which are numbered from 1."""
    previous = None
    for number in steps:
        state, metrics = step(state, frozen, background, next(batches))
        if previous is not None:  # one step late: this one is under way by now
            log(*previous)
        previous = number, metrics
    if previous is not None:
        log(*previous)
    return state


@contextlib.contextmanager
def metrics_log(
    path: Path, title: str, steps: int, log_every: int, console: Console
) -> Iterator[Log]:
    """Yields a function that takes the metrics of each step in turn.

    Every `log_every` steps and at the last one it appends a line to `path`, with the
    loss (nats), seconds since the start and tokens per second since the line before,
    and moves the progress bar; without a terminal it prints ten lines in all.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    start = since = time.perf_counter()
    tokens = 0
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    with path.open("w") as file, bar as progress:
        task = progress.add_task(title, total=steps, status="")

        def log(step: int, metrics: Metrics) -> None:
            nonlocal since, tokens
            tokens += metrics["tokens"]
            if step % log_every and step != steps:
                return
            row = {name: float(value) for name, value in metrics.items()}
            now = time.perf_counter()
            speed = float(tokens) / (now - since)
            since, tokens = now, 0
            row |= {"seconds": now - start, "tokens_per_second": speed}
            file.write(json.dumps({"step": step} | row) + "\n")
            file.flush()
            status = f"loss {row['loss']:.4f}  {speed:,.0f} tokens/s"
            if "slots_written" in row:
                status += f"  {row['slots_written']:,.0f} slots written"
            progress.update(task, completed=step, status=status)
            if not console.is_terminal and _is_due(step, steps, log_every):
                left = (steps - step) * (now - start) / step
                line = f"{title} {step}/{steps}  {status}  {left:.0f} s left"
                console.print(line, soft_wrap=True, highlight=False)

        yield log


def _is_due(step: int, steps: int, log_every: int) -> bool:
    every = max(steps // PLAIN_LINES, 1)
    return step == steps or step // every > (step - log_every) // every
