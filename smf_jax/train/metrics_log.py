"""`metrics.jsonl` and the progress bar of a training run."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from smf_jax import multihost
from smf_jax.atomic import name_file
from smf_jax.runs.jsonl import truncate_rows
from smf_jax.train.state import Metrics

PLAIN_LINES = 10  # progress lines of a run without a terminal
COMPILING = "compiling the training step"
GUARD_METRICS = ("updated", "skipped")  # read by the guard, not logged


@contextlib.contextmanager
def metrics_log(
    path: Path, title: str, done: int, steps: int, log_every: int, console: Console
) -> Iterator[tuple[Callable[[int, Metrics], None], Callable[[float], None]]]:
    """Yields `log(step, metrics)`, to call for each step, and `pause(seconds)`.

    Every `log_every` steps and at the last one `log` adds a row to `path`, with the
    loss (nats), seconds since the start, and tokens per second since the last row, and
    moves the progress bar; without a terminal it prints ten lines in all. Until the
    first step is done, both say that it is being compiled. Rows of steps after `done`,
    from before an interruption, are removed. A pause is no time of training: it does
    not count in the tokens per second.
    """
    columns = (
        TextColumn("{task.description}", markup=False),  # it holds a path
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    rows = truncate_rows(path, done) if multihost.is_main() else []
    start = since = time.perf_counter()
    before = rows[-1].get("seconds", 0.0) if rows else 0.0
    tokens = 0
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("a")) if multihost.is_main() else None
        progress = stack.enter_context(bar)
        task = progress.add_task(COMPILING, total=steps, completed=done, status="")
        if not console.is_terminal:
            console.print(f"{title}: {COMPILING}")

        def log(step: int, metrics: Metrics) -> None:
            nonlocal since, tokens
            if step == done + 1:
                progress.update(task, description=title)
            tokens += metrics["tokens"]
            if step % log_every and step < steps:
                return
            numbers = {
                name: float(value)
                for name, value in metrics.items()
                if name not in GUARD_METRICS
            }
            now = time.perf_counter()
            speed = float(tokens) / (now - since)
            since, tokens = now, 0
            times = {"seconds": before + now - start, "tokens_per_second": speed}
            # JSON has no NaN.
            row = {n: v if math.isfinite(v) else None for n, v in numbers.items()}
            if file is not None:
                with name_file(path):
                    file.write(json.dumps({"step": step} | row | times) + "\n")
                    file.flush()
            status = f"loss {numbers['loss']:.4f}  {speed:,.0f} tokens/s"
            if "slots_written" in numbers:
                status += f"  {numbers['slots_written']:,.0f} slots"
            progress.update(task, completed=step, status=status)
            if not console.is_terminal and _has_line(step, steps, log_every):
                left = (steps - step) * (now - start) / (step - done)
                line = f"{title} {step}/{steps}  {status}  {left:.0f} s left"
                console.print(line, soft_wrap=True)

        def pause(seconds: float) -> None:
            nonlocal since
            since += seconds

        yield log, pause


def _has_line(step: int, steps: int, log_every: int) -> bool:
    every = max(steps // PLAIN_LINES, 1)
    return step == steps or step // every > (step - log_every) // every
