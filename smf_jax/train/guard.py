"""Stops a run whose numbers are not finite, or that diverges."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from smf_jax import multihost
from smf_jax.atomic import name_file
from smf_jax.data.batches import Batch
from smf_jax.optim.rows import all_finite
from smf_jax.runs import OpenRun
from smf_jax.runs.files import NONFINITE
from smf_jax.runs.jsonl import truncate_rows
from smf_jax.train.state import Metrics

WINDOW = 10  # consecutive bad steps before a run counts as diverged
SHOWN = 5  # records named in a message; the file names all


class TrainingError(Exception):
    """A run cannot continue; its last checkpoint is from before the error."""


@contextlib.contextmanager
def make_guard(
    run: OpenRun,
    max_skips: int,
    vocab_size: int,
    records: Sequence[str],
    streaks: dict[str, int],
) -> Iterator[Callable[[int, Metrics, Batch], None]]:
    """Yields a function that checks the metrics of each step in turn.

    It writes the records of each skipped batch to `nonfinite.jsonl`, a row a step, and
    updates `streaks`, the consecutive diverged and dead steps so far, in place. Rows
    of steps after the run's start are removed.

    Raises:
      TrainingError: Raised by the function, if the run must not continue.
    """
    path = run.run_dir / NONFINITE
    if multihost.is_main() and path.exists():
        truncate_rows(path, run.start or 0)

    def guard(step: int, metrics: Metrics, batch: Batch) -> None:
        loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
        if metrics["updated"]:  # a uniform guess costs log(vocab_size) nats
            _require_learning(step, loss, norm, math.log(vocab_size), streaks)
            return
        reason = _why_not_finite(loss, norm)
        used = np.unique(batch.records[batch.segments > 0])
        ids = sorted({records[index] for index in used})
        if multihost.is_main():
            with name_file(path), path.open("a", encoding="utf-8") as file:
                row = {"step": step, "what": reason, "records": ids}
                file.write(json.dumps(row) + "\n")
        named = ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")
        message = (
            f"step {step}: {reason}, so nothing was updated; its batch held "
            f"{len(ids)} records ({named}), see {path}"
        )
        if int(metrics["skipped"]) > max_skips:
            raise TrainingError(
                f"{message}. --on-nan skip=K skips up to K such batches; a lower "
                "optim.learning_rate may avoid them"
            )
        run.console.print(f"skipped {message}")

    yield guard


def _require_learning(step, loss, norm, uniform, streaks) -> None:
    """Raises `TrainingError` after `WINDOW` consecutive diverged or dead steps."""
    diverged, dead = loss > 3 * uniform, norm == 0 and loss > uniform / 2
    streaks["diverged"] = streaks["diverged"] + 1 if diverged else 0
    streaks["dead"] = streaks["dead"] + 1 if dead else 0
    if max(streaks.values()) < WINDOW:
        return
    reason = (
        f"the loss exceeds {3 * uniform:.1f}, 3 times that of a uniform guess"
        if streaks["diverged"] >= WINDOW
        else "the gradient is 0 and the model has not learned"
    )
    raise TrainingError(
        f"step {step}: diverged: for {WINDOW} steps {reason} (loss {loss:.3g}). Start "
        "another run with a lower optim.learning_rate, or with optim.max_grad_norm"
    )


def _why_not_finite(loss: float, norm: float) -> str:
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm):
        return f"the gradient norm is {norm}"
    return "a row to be written is not finite"


def require_finite(step: int, params: PyTree) -> None:
    """Raises `TrainingError` if a parameter is not finite, before it is saved."""
    if not jax.jit(all_finite)(params):
        raise TrainingError(
            f"step {step}: a parameter is not finite, so nothing was saved. Start "
            "another run with a lower optim.learning_rate"
        )


def is_sound(streaks: dict[str, int]) -> bool:
    """Returns whether the last steps look like training."""
    return max(streaks.values()) < WINDOW // 2


def skips(on_nan: str) -> int:
    """Returns how many steps may go without an update: K of `skip=K`, or 0."""
    return int(on_nan.removeprefix("skip=")) if on_nan != "stop" else 0
