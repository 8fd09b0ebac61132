"""Gives an imported model memory layers: calibrated, or trained until they have healed.

A calibrated memory is computed from the data, and changes nothing until facts are
taught. In training only the memory changes, and the held-out loss of the model without
it is the target; a memory that adds nothing is inert, and has not healed.
"""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from smf_jax import checkpoint, multihost
from smf_jax.config import BY_DEFAULT, RetrofitConfig, calibrated_memory
from smf_jax.data.batches import Batch, Packed, hold_out, pack_corpus, packed_batches
from smf_jax.data.corpus import Corpus, describe_corpus, load_corpus
from smf_jax.evaluate.intervals import show_interval
from smf_jax.evaluate.perplexity import TextLoss, text_loss
from smf_jax.evaluate.questions import (
    GROUPS,
    NO_QUESTIONS,
    Questions,
    evaluate_model,
    load_questions,
)
from smf_jax.model.block import Block
from smf_jax.model.build import add_memory
from smf_jax.model.transformer import Transformer
from smf_jax.optim.methods import is_memory_variable, make_method
from smf_jax.runs import AUTO, OpenRun, Resume, Run, load_base, open_run
from smf_jax.runs.files import RETROFIT, USAGE, read_result, write_result
from smf_jax.runs.load import all_params, require_context
from smf_jax.runs.record import describe
from smf_jax.sharding import MeshLayout
from smf_jax.slots.usage_stats import CROWDED, usage_stats
from smf_jax.train.fit import fit, prepare
from smf_jax.verbs.calibrate import calibrate_memory, memory_share
from smf_jax.verbs.evaluate import asking_of
from smf_jax.verbs.pretrain import print_left_out
from smf_jax.verbs.usage import make_read_counter, save_usage

ACTIVE = 0.01  # least of what a memory adds, as a share of the feed-forward
STATS_BATCHES = 16  # of training text, whose reads show how slots are used
Measures = dict[str, Any]


class Data(NamedTuple):
    """What the memory is trained on, and what the model is measured on."""

    corpus: Corpus
    packed: Packed  # trained on
    held_out: list[Batch]  # rows that are not
    questions: Questions


class Retrofitted(NamedTuple):
    """The result of a retrofit."""

    run_dir: Path
    healed: bool  # whether its held-out loss is within the margin of the base's
    verdict: str  # the same as a sentence


def retrofit(
    config: RetrofitConfig, console: Console, resume: Resume = AUTO
) -> Retrofitted:
    """Adds memory layers to the model of `config.base` and trains them, or resumes.

    Raises:
      ConfigError: The base is missing or has a memory, the data do not fit, or the run
        directory holds a damaged or different run.
      Interrupted, TrainingError, SaveError: As `fit` does.
    """
    with open_run(config.run_dir, console, resume) as run:
        base = load_base(config, console)
        if config.memory is None:
            memory = calibrated_memory(base.model.config)
            config = dataclasses.replace(config, memory=memory)
        data = _load_data(config, base, console)
        if config.steps == 0:
            return _calibrate_only(run, config, base, data, console)
        before = run.progress.get("before")
        if before is None:
            console.print("evaluating the base")
            texts = text_loss(base.model, data.held_out, config.data.batch_size)
            before = _measure(base.model, base, texts, data, console)
        model = add_memory(base.model, config.memory, config.seed)
        if config.memory.calibrated is not None and run.start is None:
            calibrate_memory(model, data.packed, config, console)
        run.begin(_record(config, base, data), base.tokenizer)
        if run.start == config.steps:
            return _result(run.run_dir, read_result(run.run_dir / RETROFIT), console)

        method = make_method(config.optim, config.steps, config.values_lr_scale)
        training = prepare(run, config, model, method, config.balance_weight)
        graph, layout, records = training.graph, training.layout, data.packed.records
        count = make_read_counter(graph, config.memory, layout)
        batches = packed_batches(data.packed, config.data, config.seed)
        curve = run.progress.get("curve", [])
        run.progress.update(before=before, curve=list(curve))
        evaluations = fit(
            run, config, training, batches, records, eval_every=config.eval_every
        )
        for step, state in evaluations:
            params = (state.trainable, training.frozen)
            current = nnx.merge(graph, *params)
            texts = text_loss(current, data.held_out, config.data.batch_size)
            slots = _slot_stats(count, layout, params, config, data)
            scales = [float(block.memory_scale[...]) for block in _added(current)]
            point = {"loss": texts.loss, "slots": slots, "memory_scale": scales}
            point["added"] = memory_share(current, data.held_out[:STATS_BATCHES])
            curve.append({"step": step} | point)
            run.progress["curve"] = list(curve)
            _print_point(curve[-1], before, console)
            if step == config.steps:
                after = _measure(current, base, texts, data, console)
                heals = texts.loss <= before["loss"] + config.margin
                is_inert = point["added"] is not None and point["added"] < ACTIVE
                report = {
                    "healed": heals and not is_inert,
                    "inert": is_inert,
                    "margin": config.margin,
                    "base": before,
                    "after": after | curve[-1],
                    "curve": curve,
                }
                write_result(run.run_dir / RETROFIT, report)
    return _result(run.run_dir, report, console)


def _record(config: RetrofitConfig, base: Run, data: Data) -> dict[str, Any]:
    lineage = base.lineage._replace(retrofit=config, finetune=None)
    hashes = {"corpus_hash": data.corpus.hash, "base_hash": base.model_hash}
    return describe(lineage, base.tokenizer, **hashes)


def _calibrate_only(
    run: OpenRun, config: RetrofitConfig, base: Run, data: Data, console: Console
) -> Retrofitted:
    """Adds a calibrated memory, which is finished without a step."""
    run.begin(_record(config, base, data), base.tokenizer)
    if run.start is None:
        model = add_memory(base.model, config.memory, config.seed)
        documents, stats = calibrate_memory(model, data.packed, config, console)
        model_hash = checkpoint.params_hash(all_params(model))
        shape = (config.data.batch_size, config.data.seq_len)
        about = {"model_hash": model_hash, "corpus_hash": data.corpus.hash}
        if multihost.is_main():
            path = run.run_dir / USAGE
            save_usage(path, config.memory, documents, document_shape=shape, **about)
        slots = stats._asdict()
        write_result(run.run_dir / RETROFIT, {"healed": True, "slots": [slots]})
        params = nnx.as_pure(nnx.state(model, is_memory_variable))
        with checkpoint.saver(run.run_dir, config.save) as saver:
            saver.save(0, {"params": params}, {}, {})
    verdict = f"{run.run_dir} has a calibrated memory, which adds 0 until it is taught"
    return Retrofitted(run.run_dir, True, verdict)


def _load_data(config: RetrofitConfig, base: Run, console: Console) -> Data:
    require_context(config.data.seq_len, base)
    corpus = load_corpus(config.data)
    about = describe_corpus(config.data, corpus)
    console.print(f"data: {about}")
    packed = pack_corpus(base.tokenizer, corpus, config.data)
    print_left_out(corpus, packed, console)
    if config.steps == 0:
        return Data(corpus, packed, [], NO_QUESTIONS)
    questions = load_questions(corpus, None, None, "questions", console)
    return Data(corpus, *hold_out(packed, config.held_out), questions)


def _measure(
    model: Transformer, base: Run, texts: TextLoss, data: Data, console: Console
) -> Measures:
    """Returns what a base and its retrofit are compared by, for one of the two."""
    asking = asking_of(base, BY_DEFAULT, data.questions)
    about = (base.tokenizer, data.questions, [], 0, asking, console)
    evaluation = evaluate_model(model, *about)
    return {
        "n": texts.n,
        "loss": texts.loss,
        "loss_95": texts.loss_95,
        "perplexity": math.exp(texts.loss),
        "scores": {name: of._asdict() for name, of in evaluation.scores.items()},
    }


def _added(model: Transformer) -> list[Block]:
    """Returns the blocks whose memory is added to their feed-forward."""
    return [block for block in model.blocks if block.memory_scale is not None]


def _slot_stats(count, layout: MeshLayout, params, config, data: Data) -> list[dict]:
    """Returns how evenly some batches of training text read each table."""
    batches = packed_batches(data.packed, config.data, config.seed + 1)
    counts = sum(
        np.asarray(count(params, layout.shard_batch(batch)), np.int64)
        for batch in itertools.islice(batches, STATS_BATCHES)
    )
    return [usage_stats(of_table)._asdict() for of_table in counts]


def _print_point(point: Measures, before: Measures, console: Console) -> None:
    worst = max(point["slots"], key=lambda slots: slots["top_percent"])
    console.print(
        f"step {point['step']}: held-out loss {point['loss']:.4f} "
        f"(base {before['loss']:.4f}), {worst['read']:.0%} of slots read, "
        f"{worst['top_percent']:.0%} of reads on the top 1 %, {worst['hubs']} hubs"
    )
    if worst["top_percent"] > CROWDED:
        console.print(
            f"WARNING: the top 1 % of slots take {worst['top_percent']:.0%} of the "
            "reads: raise balance_weight, or finetuning will overwrite slots that all "
            "texts need",
            style="bold red",
        )


def _result(run_dir: Path, report: Measures, console: Console) -> Retrofitted:
    """Prints the report of a retrofit, and returns its result."""
    console.print(_table(report))
    healed = "healed" if report["healed"] else "not healed"
    if report["inert"]:
        healed += f", as its memory adds {report['after']['added']:.2%} of what the "
        healed += "feed-forward does"
    verdict = (
        f"{run_dir} has {healed}: its loss on "
        f"{report['base']['n']:,} held-out rows is {report['after']['loss']:.4f}, the "
        f"base's {report['base']['loss']:.4f} (margin={report['margin']})"
    )
    return Retrofitted(run_dir, report["healed"], verdict)


def _table(report: Measures) -> Table:
    before, after = report["base"], report["after"]
    table = Table("retrofit [95 %]", "n", "base")
    table.add_column("healed" if report["healed"] else "not healed")
    losses = (
        f"{of['loss']:.4f} {show_interval(of['loss_95'])}" for of in (before, after)
    )
    table.add_row("held-out loss", f"{before['n']:,}", *losses)
    perplexities = (f"{of['perplexity']:.4f}" for of in (before, after))
    table.add_row("held-out perplexity", f"{before['n']:,}", *perplexities)
    for group, scores in before["scores"].items():
        exact = (
            f"{of['exact_match']:.3f} {show_interval(of['exact_match_95'])}"
            for of in (scores, after["scores"][group])
        )
        table.add_row(f"exact match, {GROUPS[group]}", f"{scores['n']:,}", *exact)
    if after["added"] is not None:
        share = f"{after['added']:.2%}"
        table.add_row("memory / feed-forward", "", f"{0:.2%}", share)
    for scale in after["memory_scale"]:
        table.add_row("memory scale", "", f"{0:.4f}", f"{scale:.4f}")
    return table
