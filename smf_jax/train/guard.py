"""What stops a run that learns nothing any more: numbers that are none, or far off."""

import contextlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from smf_jax import distributed
from smf_jax.data.batches import Batch
from smf_jax.train.loop import keep_rows
from smf_jax.train.step import Metrics

NONFINITE = "nonfinite.jsonl"
WINDOW = 10  # steps in a row that must look alike before a run is called diverged
SHOWN = 5  # records named in a message; the file names all


class TrainingError(RuntimeError):
    """A run cannot go on; its last checkpoint is from before the trouble."""


Guard = Callable[[int, Metrics, Batch], None]


@contextlib.contextmanager
def make_guard(
    run_dir: Path,
    done: int,
    max_skips: int,
    vocab_size: int,
    records: Sequence[str],
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
      console: Told of batches that are skipped.

    Raises:
      TrainingError: The function, where a run must not go on.
    """
    path = run_dir / NONFINITE
    if distributed.is_main() and path.exists():
        keep_rows(path, done)
    uniform = math.log(vocab_size)
    wild, still = deque(maxlen=WINDOW), deque(maxlen=WINDOW)

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
                    f"{message}. --on-nan skip=K leaves out K such batches; a lower "
                    "optim.learning_rate may avoid them"
                )
            console.print(f"skipped {message}")
            return
        wild.append(loss > 3 * uniform)
        still.append(norm == 0 and loss > 0.5 * uniform)
        limit = f"the loss is above {3 * uniform:.1f}, 3 times that of guessing"
        dead = "the gradient is 0 and the model has not learned"
        for seen, what in ((wild, limit), (still, dead)):
            if len(seen) == WINDOW and all(seen):
                raise TrainingError(
                    f"step {step}: diverged: for {WINDOW} steps {what} (loss "
                    f"{loss:.3g}). Lower optim.learning_rate, or set optim.clip_norm"
                )

    yield guard


def _complaint(loss: float, norm: float) -> str:
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm):
        return f"the norm of the gradient is {norm}"
    return "a number to be written is not finite"


def skips(on_nan: str) -> int:
    """Returns how many steps may go without an update: K of `skip=K`, or 0."""
    return int(on_nan.removeprefix("skip=")) if on_nan != "stop" else 0
