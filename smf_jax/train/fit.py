"""The training loop of every verb."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import grain
from flax import nnx
from jaxtyping import PyTree
from rich.console import Console

from smf_jax import checkpoint, multihost
from smf_jax.config import TrainConfig
from smf_jax.data.batches import Batch
from smf_jax.exits import Interrupted
from smf_jax.model.transformer import Transformer
from smf_jax.optim.methods import Method
from smf_jax.runs import OpenRun
from smf_jax.runs.files import METRICS
from smf_jax.runs.layout import print_layout
from smf_jax.sharding import MeshLayout
from smf_jax.slots.document_frequency import Background
from smf_jax.train.guard import is_sound, make_guard, require_finite, skips
from smf_jax.train.metrics_log import metrics_log
from smf_jax.train.preemption import stop_on_signal
from smf_jax.train.state import Metrics, TrainState, as_saved, init_or_restore
from smf_jax.train.step import Step, make_step


class Training(NamedTuple):
    """A compiled step, and the state it starts from."""

    graph: nnx.GraphDef
    step: Step
    state: TrainState
    frozen: PyTree
    layout: MeshLayout
    vocab_size: int

    @property
    def params(self) -> tuple[PyTree, PyTree]:
        """All parameters at the start, in the parts that `graph` was split into."""
        return self.state.trainable, self.frozen


def prepare(
    run: OpenRun,
    config: TrainConfig,
    model: Transformer,
    method: Method,
    balance_weight: float = 0.0,
) -> Training:
    """Returns what `fit` trains: a new model, or as the run's checkpoint has it."""
    max_skips, layout = skips(config.on_nan), model.layout
    graph, state, frozen = init_or_restore(run, model, method, max_skips)
    memory, parts = model.config.memory, config.grad_accum_steps
    step = make_step(graph, memory, method, parts, balance_weight, max_skips, layout)
    vocab_size = model.config.vocab_size
    return Training(graph, step, state, frozen, layout, vocab_size)


def fit(
    run: OpenRun,
    config: TrainConfig,
    training: Training,
    batches: grain.DatasetIterator,
    records: list[str],
    background: Background | None = None,
    eval_every: int = 0,
    saves_evaluated: bool = False,
) -> Iterator[tuple[int, TrainState]]:
    """Trains to the last step, and yields `(step, state)` where evaluation is due.

    That is every `eval_every` steps (0: never) and after the last one. The body of the
    `for` may write files of the run, and set `run.progress` (JSON that the checkpoint
    of this step saves) and `run.scores`; the checkpoint is saved after it, so that a
    finished run has all its files. The yielded state is donated to the next step. With
    `saves_evaluated` only these steps are saved, if the body does not leave the `for`.

    `batches` is endless; on resume it continues where it stopped; `records` are
    the ids that `Batch.records` indexes; methods that select slots need a `background`.

    Raises:
      Interrupted: A signal asked to stop, and the run was saved.
      TrainingError: The run diverged, or its numbers are not finite.
      SaveError: A checkpoint could not be written.
    """
    _, step, state, frozen, layout, _ = training
    done, last = run.start or 0, config.steps
    shard = functools.partial(layout.shard_batch, parts=config.grad_accum_steps)
    streaks = run.progress.get("streaks", {"diverged": 0, "dead": 0})
    save_every = eval_every if saves_evaluated else config.save.every
    if run.start is not None:
        batches.set_state(run.progress["data"])
    with (
        stop_on_signal() as stop_requested,
        checkpoint.saver(run.run_dir, config.save) as saver,
        _observer(run, config, training, records, streaks, saver) as (observe, pause),
    ):
        unobserved = None
        for number in range(done + 1, last + 1):
            multihost.reached(f"step {number}")
            with multihost.blame_lost_process():
                batch = next(batches)
                state, metrics = step(state, frozen, background, shard(batch))
                if unobserved:  # one step late: this step is running by now
                    observe(*unobserved)
                unobserved = number, metrics, batch
                stopping = stop_requested(number)
                evaluates = _is_due(number, last, eval_every)
                saves = _is_due(number, last, save_every)
                if stopping or evaluates or saves:
                    observe(*unobserved)
                    unobserved = None
            if evaluates:
                begin = time.perf_counter()
                yield number, state
                pause(time.perf_counter() - begin)
            # What may be the start of divergence does not replace a sound checkpoint.
            sound = number == last or is_sound(streaks)
            if (saves and sound) or (stopping and not saves_evaluated):
                run.progress["data"] = batches.get_state()
                run.progress["streaks"] = dict(streaks)
                _save(run, saver, number, state, float(metrics["loss"]))
            run.scores.clear()
            if stopping:
                break
    # Not before the checkpoint is on disk.
    if number < last:
        at = " at its last evaluation" if saves_evaluated else ""
        raise Interrupted(f"stopped after step {number} of {last}, and saved{at}")


def _save(
    run: OpenRun, saver: checkpoint.Saver, step: int, state: TrainState, loss: float
) -> None:
    require_finite(step, state.trainable)
    scores = run.scores | ({"loss": loss} if math.isfinite(loss) else {})
    saver.save(step, as_saved(state), dict(run.progress), scores)


@contextlib.contextmanager
def _observer(
    run: OpenRun,
    config: TrainConfig,
    training: Training,
    records: list[str],
    streaks: dict[str, int],
    saver: checkpoint.Saver,
) -> Iterator[tuple[Callable[[int, Metrics, Batch], None], Callable[[float], None]]]:
    """Yields `observe`, which guards, logs and checks on the last save, and `pause`."""
    done, console = run.start or 0, run.console
    title = f"{config.verb} {run.run_dir.name}"
    print_layout(training.layout, console)
    log = metrics_log(
        run.run_dir / METRICS, title, done, config.steps, config.log_every, console
    )
    max_skips = skips(config.on_nan)
    with (
        log as (log_metrics, pause),
        make_guard(run, max_skips, training.vocab_size, records, streaks) as guard,
    ):

        def observe(number: int, metrics: Metrics, batch: Batch) -> None:
            saver.check()
            if number == done + 1:
                _print_padding(training.layout, batch, config.grad_accum_steps, console)
            guard(number, metrics, batch)
            log_metrics(number, metrics)

        yield observe, pause


def _print_padding(
    layout: MeshLayout, batch: Batch, parts: int, console: Console
) -> None:
    rows = len(batch.tokens)
    if padding := layout.padding_rows(rows, parts):
        console.print(
            f"batches: {rows} rows padded by {padding}, for equal rows a device in "
            f"each of {parts} part{'s' if parts > 1 else ''}"
        )


def _is_due(step: int, last: int, every: int) -> bool:
    return step == last or (every > 0 and step % every == 0)
