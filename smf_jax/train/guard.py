"""What stops a run that learns nothing any more: numbers that are none, or far off."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree
from rich.console import Console

from smf_jax import distributed
from smf_jax.data.batches import Batch
from smf_jax.optim.rows import all_finite
from smf_jax.train.loop import keep_rows
from smf_jax.train.record import NONFINITE
from smf_jax.train.setting import Metrics

WINDOW = 10  # steps in a row that must look alike before a run is called diverged
SHOWN = 5  # records named in a message; the file names all


class TrainingError(Exception):
    """A run cannot go on; its last checkpoint is from before it, or its beginning."""


Guard = Callable[[int, Metrics, Batch], None]


@contextlib.contextmanager
def make_guard(
    run_dir: Path,
    done: int,
    max_skips: int,
    vocab_size: int,
    records: Sequence[str],
    strange: dict[str, int],
    console: Console,
) -> Iterator[Guard]:
    """Yields a function that looks at the metrics of each step in turn.

    It writes what a step without update was given to `nonfinite.jsonl`, a line each.

    Args:
      run_dir: Of the run.
      done: Steps done before; lines of later ones are from before an interruption.
      max_skips: Steps that may go without an update.
      vocab_size: Guessing evenly among so many tokens costs log(vocab_size) nats.
      records: The ids that `Batch.records` counts into.
      strange: How many steps up to now were wild, and how many were dead, in a row; it
        is counted on. Begins as `nothing_strange()`.
      console: Told of batches that are skipped.

    Raises:
      TrainingError: The function, where a run must not go on.
    """
    path = run_dir / NONFINITE
    if distributed.is_main() and path.exists():
        keep_rows(path, done)

    def guard(step: int, metrics: Metrics, batch: Batch) -> None:
        loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
        if not metrics["updated"]:
            what = _complaint(loss, norm)
            held = np.unique(batch.records[batch.segments > 0])
            ids = sorted({records[place] for place in held})
            if distributed.is_main():
                with path.open("a", encoding="utf-8") as file:
                    row = {"step": step, "what": what, "records": ids}
                    file.write(json.dumps(row) + "\n")
            named = ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")
            message = (
                f"step {step}: {what}, so nothing was updated; its batch held "
                f"{len(ids)} records ({named}), see {path}"
            )
            if int(metrics["skipped"]) > max_skips:
                raise TrainingError(
                    f"{message}. --on-nan skip=K leaves out K such batches; another "
                    "run with a lower optim.learning_rate may have none"
                )
            console.print(f"skipped {message}")
            return
        _require_sane(step, loss, norm, math.log(vocab_size), strange)

    yield guard


def _require_sane(step, loss, norm, uniform, strange) -> None:
    """Raises `TrainingError` when enough steps in a row were strange."""
    wild, dead = loss > 3 * uniform, norm == 0 and loss > uniform / 2
    strange["wild"] = strange["wild"] + 1 if wild else 0
    strange["dead"] = strange["dead"] + 1 if dead else 0
    if max(strange.values()) < WINDOW:
        return
    what = (
        f"the loss is above {3 * uniform:.1f}, 3 times that of guessing"
        if strange["wild"] >= WINDOW
        else "the gradient is 0 and the model has not learned"
    )
    raise TrainingError(
        f"step {step}: diverged: for {WINDOW} steps {what} (loss {loss:.3g}). Begin "
        "another run with a lower optim.learning_rate, or with optim.clip_norm"
    )


def _complaint(loss: float, norm: float) -> str:
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm):
        return f"the norm of the gradient is {norm}"
    return "a row to be written is not finite"


def nothing_strange() -> dict[str, int]:
    """Returns the counts of a guard before the first step."""
    return {"wild": 0, "dead": 0}


def require_finite(step: int, params: PyTree) -> None:
    """Raises `TrainingError` if a parameter is not finite, so that it is not saved."""
    if not jax.jit(all_finite)(params):
        raise TrainingError(
            f"step {step}: a parameter is not finite, so nothing was saved. Begin "
            "another run with a lower optim.learning_rate"
        )


def is_sound(strange: dict[str, int]) -> bool:
    """Returns whether the steps before this one look like training."""
    return max(strange.values()) < WINDOW // 2


def skips(on_nan: str) -> int:
    """Returns how many steps may go without an update: K of `skip=K`, or 0."""
    return int(on_nan.removeprefix("skip=")) if on_nan != "stop" else 0
