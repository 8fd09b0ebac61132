"""From the step that a run goes on from to its last one, saved on the way."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grain
from jaxtyping import PyTree
from rich.console import Console

from smf_jax import checkpoint
from smf_jax.config import FinetuneConfig, PretrainConfig, RetrofitConfig
from smf_jax.exits import Interrupted
from smf_jax.sharding import Placement
from smf_jax.train.guard import is_sound, make_guard, require_finite
from smf_jax.train.interrupt import stop_on_signal
from smf_jax.train.loop import due_steps, is_due, metrics_log, train
from smf_jax.train.record import METRICS
from smf_jax.train.run import tell_placement
from smf_jax.train.setting import Background, TrainState
from smf_jax.train.state import as_saved
from smf_jax.train.step import Step


class Session(NamedTuple):
    """What of a run does not change while it trains."""

    title: str
    run_dir: Path
    config: PretrainConfig | RetrofitConfig | FinetuneConfig
    done: int  # steps before this session
    step: Step
    placement: Placement
    frozen: PyTree
    background: Background | None
    batches: grain.DatasetIterator  # at the batch after `done`
    records: list[str]  # the ids that `Batch.records` counts into
    vocab_size: int
    strange: dict[str, int]  # what the guard has counted by `done`


def train_to_end(
    session: Session,
    state: TrainState,
    max_skips: int,
    every: int,
    look: Callable[[int, TrainState], tuple[dict[str, Any], dict[str, float]]],
    console: Console,
) -> None:
    """Trains to the last step, which is saved by then.

    Args:
      session: What is trained, and on what.
      state: After step `session.done`.
      max_skips: Steps that may go without an update.
      every: Steps between two looks, besides those before saving; 0: none.
      look: Given a step and the state after it, returns what to save beside the
        arrays, as JSON, and metrics of that step.
      console: Told of progress.

    Raises:
      Interrupted: A signal asked to stop, and the run was saved.
      TrainingError: The numbers are not finite, or far off.
      SaveError: A checkpoint could not be written.
    """
    run_dir, config, done = session.run_dir, session.config, session.done
    tell_placement(session.placement, console)
    path, last = run_dir / METRICS, config.steps
    share = functools.partial(session.placement.share, parts=config.accumulate)
    given = (session.frozen, session.background, session.batches, share)
    with (
        stop_on_signal() as stop,
        checkpoint.saver(run_dir, config.save) as saver,
        metrics_log(path, session.title, done, last, config.log_every, console) as log,
        make_guard(
            run_dir,
            done,
            max_skips,
            session.vocab_size,
            session.records,
            session.strange,
            console,
        ) as guard,
    ):

        def observe(number, metrics, batch):
            saver.check()
            if number == done + 1:
                _tell_padding(session, len(batch.tokens), console)
            guard(number, metrics, batch)
            log(number, metrics)

        for steps in due_steps(done, last, config.save.every, every):
            trained = train(session.step, state, *given, steps, observe, stop)
            state = trained.state
            progress, metrics = look(trained.step, state)
            # What may be the beginning of the end does not replace what is sound.
            sound = trained.step == last or is_sound(session.strange)
            due = is_due(trained.step, last, config.save.every) and sound
            if trained.stopped or due:
                require_finite(trained.step, state.trainable)
                progress["data"] = session.batches.get_state()
                progress["strange"] = dict(session.strange)
                if math.isfinite(trained.loss):
                    metrics["loss"] = trained.loss
                saver.save(trained.step, as_saved(state), progress, metrics)
            if trained.stopped and trained.step < last:
                break
    # Not before everything is on disk.
    if trained.step < last:
        raise Interrupted(f"stopped after step {trained.step} of {last}, and saved")


def _tell_padding(session: Session, rows: int, console: Console) -> None:
    parts = session.config.accumulate
    if lacking := session.placement.lacking(rows, parts):
        console.print(
            f"batches: {rows} rows and {lacking} of padding, for as many rows a device "
            f"in each of {parts} part{'s' if parts > 1 else ''}",
            highlight=False,
        )
