"""The demo: pretrain, count usage, teach by every method, compare."""

import dataclasses
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from smf_jax import checkpoint, multihost
from smf_jax.config import (
    FinetuneConfig,
    PretrainConfig,
    config_hash,
    require,
)
from smf_jax.data.corpus import load_corpus
from smf_jax.demo.recipes import (
    FILE_RATES,
    PRESETS,
    WORLD_RATES,
    DemoConfig,
    Recipe,
    base_config,
    finetune_config,
    recipes_of,
)
from smf_jax.demo.summary import describe_data, print_summary
from smf_jax.evaluate.forgetting import CurvePoint, forgotten, known_at
from smf_jax.evaluate.perplexity import TextLoss
from smf_jax.runs.files import (
    EVALUATION,
    FRONTIER,
    METRICS,
    REPORT,
    TEACHING,
    USAGE,
    read_result,
    write_result,
)
from smf_jax.runs.load import is_finished, load_run
from smf_jax.runs.lock import lock_run_dir
from smf_jax.runs.record import as_recorded, code_version, read_record
from smf_jax.verbs.finetune import finetune
from smf_jax.verbs.pretrain import pretrain
from smf_jax.verbs.usage import collect_usage

SUMMARY = "summary.json"


def run(config: DemoConfig, console: Console) -> None:
    """Runs the demo, and writes `summary.json` into `config.out`.

    Raises:
      ConfigError: A file cannot be used, or `config.out` holds other runs.
    """
    compare(config, base_config(config), recipes_of(config), console)


def compare(
    config: DemoConfig,
    base: PretrainConfig,
    recipes: dict[str, Recipe],
    console: Console,
) -> None:
    """Pretrains the base unless that is done, teaches it by each recipe, and compares.

    Raises:
      ConfigError: As by `run`.
    """
    with lock_run_dir(config.out) as out:
        start = time.perf_counter()
        corpus = load_corpus(base.data)
        data = describe_data(config, corpus)
        for line in data:
            console.print(line)
        _pretrain_once(base, corpus.hash, console)
        for stale in (SUMMARY, REPORT, FRONTIER):
            (out / stale).unlink(missing_ok=True)
        if not (Path(base.run_dir) / USAGE).exists():
            collect_usage(base.run_dir, PRESETS[config.preset].documents, console)
        methods = {}
        for name, recipe in recipes.items():
            run_dir = str(out / name)
            task = finetune_config(recipe, base.run_dir, run_dir, seed=config.seed)
            methods[name] = _teach_once(task, console)
        equal = min(row["taught"]["exact_match"] for row in methods.values())
        for row in methods.values():
            known = known_at(row["curve"], equal)
            row["forgotten_at_equal"] = (
                None if known is None else forgotten(row["curve"][0].known, known)
            )
        summary = {
            "seconds": time.perf_counter() - start,
            "command": _command(config),
            "config_hash": config_hash(config),
            "seed": config.seed,
            "data": data,
            "rates": WORLD_RATES if config.facts is None else FILE_RATES,
            "equal_taught": equal,
            "methods": methods,
        }
        write_result(out / SUMMARY, summary)
        multihost.barrier("summary written")
        print_summary(summary, console)
        if config.facts is not None:
            console.print(
                f"to teach more facts: smf finetune {out / 'smf'} --facts MORE.jsonl "
                f"--run-dir {out / 'more'}"
            )


def _command(config: DemoConfig) -> str:
    """Returns the command that runs a demo."""
    options = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            options += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(["smf", "demo", *options])


def _pretrain_once(base: PretrainConfig, corpus_hash: str, console: Console) -> None:
    """Pretrains the base, or resumes that, unless it is finished.

    Raises:
      ConfigError: Another base is finished.
    """
    run_dir = Path(base.run_dir)
    if not is_finished(run_dir):
        pretrain(base, console)
        return
    record = read_record(run_dir)
    require(
        record["config_hash"] == config_hash(as_recorded(base))
        and record["corpus_hash"] == corpus_hash,
        f"{run_dir} is the base of a demo with other settings or files: choose another "
        "--out or remove it",
    )
    console.print(f"base model: {run_dir}, already pretrained")


def _teach_once(task: FinetuneConfig, console: Console) -> dict[str, Any]:
    """Teaches, or resumes that, unless it is finished by the same code.

    Returns:
      The row of the summary.
    """
    run_dir = Path(task.run_dir)
    if not _is_taught(task):
        _clear(task)
        finetune(task, console)
    teaching = read_result(run_dir / TEACHING)
    scores = read_result(run_dir / EVALUATION)["scores"]
    curve = [CurvePoint(*point) for point in teaching["curve"]]
    first, *_, last = teaching["texts"]
    texts = [TextLoss(**of) for of in (first, last) if of is not None]
    rise = texts[0].change_to(texts[1]) if texts else None
    return scores | {
        "known_before": curve[0].known,
        "forgetting": teaching["forgetting"],
        "text_loss": None if rise is None else {"n": texts[0].n, "rise": rise},
        "learning_rate": task.optim.learning_rate,
        "batch_size": min(task.batch_size, scores["taught"]["n"]),
        "steps": curve[-1].step,
        "trainable": teaching["trainable"],
        "curve": curve,
    }


def _is_taught(task: FinetuneConfig) -> bool:
    """Returns whether this code has finished the task, over this base."""
    run_dir, code = Path(task.run_dir), code_version()
    if not is_finished(run_dir):
        return False
    record = read_record(run_dir)
    return (
        record["config_hash"] == config_hash(as_recorded(task))
        and {name: record[name] for name in code} == code
        and record["base_hash"] == load_run(task.base).model_hash
    )


def _clear(task: FinetuneConfig) -> None:
    """Removes an earlier run of the demo that the task cannot resume.

    Raises:
      ConfigError: No demo has written it.
    """
    run_dir, task = Path(task.run_dir), as_recorded(task)
    if checkpoint.latest_step(run_dir) is None:
        return
    record = read_record(run_dir)
    require(
        (record["finetune"] or {}).get("base") == task.base,
        f"{run_dir} holds a run that this demo did not write: choose another --out",
    )
    if is_finished(run_dir) or record["config_hash"] != config_hash(task):
        with lock_run_dir(run_dir):
            if multihost.is_main():
                shutil.rmtree(run_dir / "checkpoints")
                (run_dir / METRICS).unlink(missing_ok=True)
        multihost.barrier("earlier run removed")
