"""Giving a model that has none a memory, and training the memory until it has healed.

Only the memory trains. The model without it says what must be reached.
"""

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from smf_jax.config import RetrofitConfig
from smf_jax.data.batches import Batch, Packed, hold_out
from smf_jax.data.corpus import describe_corpus, load_corpus
from smf_jax.evaluate.perplexity import mean_loss
from smf_jax.model.build import add_memory
from smf_jax.optim.methods import make_method
from smf_jax.slots.health import CROWDED, health
from smf_jax.train.counts import make_read_counter
from smf_jax.train.guard import nothing_strange, skips
from smf_jax.train.loop import is_due
from smf_jax.train.pretrain import pack, tell_left_out, training_batches
from smf_jax.train.questions import Questions, ask_all, load_questions
from smf_jax.train.record import RETROFIT, describe, write_json
from smf_jax.train.run import Run, load_base, require_fitting
from smf_jax.train.session import Session, train_to_end
from smf_jax.train.start import AUTO, Resume, claim, enter_run_dir, find_start
from smf_jax.train.state import restore, split_for_training, split_to_restore
from smf_jax.train.step import make_step

HEALTH_BATCHES = 16  # batches of training text whose reads tell how slots are used
Measures = dict[str, Any]


class Data(NamedTuple):
    """What a memory is healed on, and how the model is measured meanwhile."""

    packed: Packed  # trained on
    held_out: list[Batch]  # rows that are not
    questions: Questions


class Retrofitted(NamedTuple):
    """What a retrofit did."""

    run_dir: Path
    healed: bool  # whether its held-out loss is within the margin of the base's
    verdict: str  # that in words


def retrofit(
    config: RetrofitConfig, console: Console, resume: Resume = AUTO
) -> Retrofitted:
    """Gives the model of `config.base` a memory, or goes on with it, in a run.

    Raises:
      ConfigError: The base is missing or has a memory, the data do not fit, or the run
        is finished, damaged, or another one.
      Interrupted: A signal asked to stop, and the run was saved.
      TrainingError: Its numbers are not finite, or far off.
      SaveError: A checkpoint could not be written.
    """
    with claim(config.run_dir) as run_dir:
        start = find_start(run_dir, resume, console)
        base = load_base(config, console)
        require_fitting(config.data.seq_len, base)
        corpus = load_corpus(config.data)
        about = describe_corpus(config.data, corpus)
        console.print(f"data: {about}", highlight=False)
        packed = pack(config.data, corpus, base.tokenizer)
        tell_left_out(corpus, packed, console)
        data = Data(
            *hold_out(packed, config.held_out),
            load_questions(corpus, None, "questions", console),
        )
        record = describe(
            base.made._replace(retrofit=config, finetune=None),
            base.tokenizer,
            corpus_hash=corpus.hash,
            base_hash=base.model_hash,
        )
        before = None
        if start is None:
            graph, params = nnx.split(base.model)
            loss = _loss(graph, base.model.placement, (params,), config, data)
            before = _measure(base, graph, (params,), loss, data)
        model = add_memory(base.model, config.memory, config.seed)
        enter_run_dir(run_dir, start, record, base.tokenizer, console)
        report = _heal(config, run_dir, start, base, model, data, before, console)
    console.print(_table(report))
    healed = report["healed"]
    verdict = (
        f"{run_dir} has {'healed' if healed else 'not healed'}: its held-out loss is "
        f"{report['after']['loss']:.4f}, the base's {report['base']['loss']:.4f} "
        f"(margin={config.margin})"
    )
    return Retrofitted(run_dir, healed, verdict)


def _heal(
    config, run_dir, start, base: Run, model, data: Data, before, console
) -> Measures:
    method = make_method(config.optim, config.steps, config.values_rate)
    split = split_for_training if start is None else split_to_restore
    graph, state, frozen = split(model, method)
    batches = training_batches(config.data, data.packed, config.seed)
    max_skips, strange, curve = skips(config.on_nan), nothing_strange(), []
    placement = model.placement
    count = make_read_counter(graph, config.memory, placement)
    if start is not None:
        state, progress = restore(run_dir, start, state, max_skips)
        batches.set_state(progress["data"])
        strange, curve = progress["strange"], progress["curve"]
        before = progress["before"]
    report = {}

    def look(step, state):
        params = (state.trainable, frozen)
        if is_due(step, config.steps, config.eval_every):
            loss = _loss(graph, placement, params, config, data)
            point = {"step": step, "loss": loss}
            point["slots"] = _health(count, placement, params, config, data)
            curve.append(point)
            _tell(point, before, console)
        if step == config.steps:
            loss = curve[-1]["loss"]
            after = _measure(base, graph, params, loss, data) | curve[-1]
            report.update(_report(config, before, after, curve))
            write_json(run_dir / RETROFIT, report)
        return {"before": before, "curve": list(curve)}, {}

    session = Session(
        title=f"retrofit {run_dir.name}",
        run_dir=run_dir,
        config=config,
        done=start or 0,
        step=make_step(
            graph,
            config.memory,
            method,
            config.accumulate,
            config.balance,
            max_skips,
            placement,
        ),
        placement=placement,
        frozen=frozen,
        background=None,
        batches=batches,
        records=data.packed.records,
        vocab_size=base.model.config.vocab_size,
        strange=strange,
    )
    train_to_end(session, state, max_skips, config.eval_every, look, console)
    return report


def _loss(graph, placement, params, config, data: Data) -> float:
    size = config.data.batch_size
    return mean_loss(graph, params, data.held_out, size, placement)


def _measure(base: Run, graph, params, loss: float, data: Data) -> Measures:
    """Returns what the tax of a retrofit is told by, for one model."""
    placement = base.model.placement
    point = ask_all(graph, base.tokenizer, data.questions, [], placement, 0, params)
    scores = {name: of._asdict() for name, of in point.scores.items()}
    return {"loss": loss, "perplexity": math.exp(loss), "scores": scores}


def _health(count, placement, params, config, data: Data) -> list[dict[str, Any]]:
    """Returns how each table is read by some batches of training text."""
    batches = training_batches(config.data, data.packed, config.seed + 1)
    some = itertools.islice(batches, HEALTH_BATCHES)
    share = placement.share
    counts = sum(np.asarray(count(params, share(batch)), np.int64) for batch in some)
    return [health(of_table)._asdict() for of_table in counts]


def _tell(point: Measures, before: Measures, console: Console) -> None:
    worst = max(point["slots"], key=lambda slots: slots["top_percent"])
    console.print(
        f"step {point['step']}: held-out loss {point['loss']:.4f} "
        f"(base {before['loss']:.4f}), {worst['read']:.0%} of slots read, "
        f"{worst['top_percent']:.0%} of reads on the top 1 %, {worst['hubs']} hubs",
        highlight=False,
    )
    if worst["top_percent"] > CROWDED:
        console.print(
            f"WARNING: the top 1 % of slots take {worst['top_percent']:.0%} of the "
            "reads: raise balance, or teaching will touch what all texts need",
            style="bold red",
        )


def _report(config, before, after, curve) -> Measures:
    return {
        "healed": after["loss"] <= before["loss"] + config.margin,
        "margin": config.margin,
        "base": before,
        "after": after,
        "curve": curve,
    }


def _table(report: Measures) -> Table:
    before, after = report["base"], report["after"]
    table = Table("retrofit tax", "base", "healed" if report["healed"] else "after")
    for name in ("loss", "perplexity"):
        table.add_row(f"held-out {name}", f"{before[name]:.4f}", f"{after[name]:.4f}")
    for group, scores in before["scores"].items():
        pair = (scores, after["scores"][group])
        table.add_row(
            f"exact match, {group}", *(f"{of['exact_match']:.3f}" for of in pair)
        )
    return table
