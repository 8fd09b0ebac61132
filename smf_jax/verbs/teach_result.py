"""What a teaching run says at its end: scores, and the commands that come next."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from smf_jax.config import FinetuneConfig, TeachConfig, config_hash
from smf_jax.data.prompts import Prompt
from smf_jax.evaluate.asking import Asking
from smf_jax.evaluate.forgetting import Forgetting, forgetting
from smf_jax.evaluate.intervals import show_interval, wilson
from smf_jax.evaluate.questions import GROUPS
from smf_jax.runs.files import PATCH
from smf_jax.verbs.budget import tell_budget
from smf_jax.verbs.finetune import Finetuned

BYTES_PER_NUMBER = 4  # of what LoRA and full finetuning train


def describe_result(
    config: TeachConfig, task: FinetuneConfig, taught: Finetuned
) -> dict[str, Any]:
    """Returns the scores before and after, in types that JSON has."""
    first, last = taught.points[0], taught.points[-1]
    known = taught.questions.known
    change = known and forgetting(known, first.answers["known"], last.answers["known"])
    texts = None
    if first.texts is not None:
        rise = first.texts.change_to(last.texts)
        losses = {"before": first.texts.loss, "after": last.texts.loss}
        texts = {"n": first.texts.n, "rise": rise, **losses}
    patch = taught.run_dir / PATCH
    is_patch = patch.is_file()
    return {
        "command": command_of(config),
        "config": dataclasses.asdict(config),
        "config_hash": config_hash(task),
        "method": config.method,
        "base": task.base,
        "run": str(taught.run_dir),
        "before": {name: of._asdict() for name, of in first.scores.items()},
        "after": {name: of._asdict() for name, of in last.scores.items()},
        "kept": _kept(change) if change else None,
        "texts": texts,
        "budget": taught.budget,
        "curve": taught.curve(),
        "patch": str(patch) if is_patch else None,
        "bytes": (
            patch.stat().st_size if is_patch else taught.trainable * BYTES_PER_NUMBER
        ),
        "asked": _asked(taught.questions.taught[0], taught.asking),
    }


def _kept(change: Forgetting) -> dict[str, Any]:
    """Returns how the answers changed, and the share that is right as before."""
    share = 1 - len(change.lost) / change.right_before
    interval = wilson(share, change.right_before)
    return change._asdict() | {"share": share, "share_95": interval}


def _asked(prompt: Prompt, asking: Asking) -> list[str]:
    """Returns the arguments by which `smf ask` puts a prompt as it was taught."""
    is_plain = not prompt.is_question and asking.form.kind != "plain"
    return [prompt.text, *(["--prompt", "plain"] if is_plain else [])]


def command_of(config: TeachConfig) -> str:
    """Returns the command that teaches as a configuration says."""
    options = [config.model]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("model", "mesh") or value == field.default:
            continue
        values = value if isinstance(value, tuple) else (value,)
        options += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return shlex.join(["smf", "teach", *options])


def print_result(result: dict[str, Any], console: Console) -> None:
    """Prints a table with the number of cases of each score, and what may come next."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(result["method"], no_wrap=True)
    for column in ("n", "before", "after", "95 %"):
        table.add_column(column, justify="right", no_wrap=True)
    before, after = result["before"], result["after"]
    for group in ("taught", "held_out"):
        if group in after:
            of = after[group]
            scores = (before[group]["exact_match"], of["exact_match"])
            interval = show_interval(of["exact_match_95"])
            table.add_row(GROUPS[group], f"{of['n']:,}", *map(_share, scores), interval)
    if (kept := result["kept"]) is not None:
        shares = map(_share, (1.0, kept["share"]))
        interval = show_interval(kept["share_95"])
        table.add_row("kept", f"{kept['right_before']:,}", *shares, interval)
    if (texts := result["texts"]) is not None:
        rise, interval = texts["rise"]
        shown = show_interval(interval, "+.4f")
        losses = (f"{texts['before']:.4f}", f"{rise:+.4f}")
        table.add_row("text loss, nats", f"{texts['n']:,}", *losses, shown)
    console.print(table)
    seconds = result["seconds"]
    parts = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    console.print(f"seconds: {sum(seconds.values()):.0f} ({parts})")
    name = "patch" if result["patch"] else "trained"
    console.print(
        f"{name}: {_size(result['bytes'])} ({result['patch'] or result['run']})"
    )
    if kept is None:
        console.print("kept: the model answers no fact that is at hand (--keep)")
    if result["budget"] is not None:
        console.print(tell_budget(result["budget"]))
    console.print("next:")
    for line in next_commands(result):
        console.print(line)


def next_commands(result: dict[str, Any]) -> list[str]:
    """Returns the commands that ask, undo and export, a line each."""
    run = Path(result["run"])
    undo = shlex.join(["smf", "ask", result["base"], *result["asked"]])  # as it was
    if result["patch"]:
        undone = shlex.join([str(run), str(run.parent / "undone")])
        undo = f"smf patch revert {undone}"
    return [
        f"ask     {shlex.join(['smf', 'ask', str(run), *result['asked']])}",
        f"undo    {undo}",
        f"export  {shlex.join(['smf', 'export-hf', str(run), 'DIRECTORY'])}",
    ]


def _share(value: float) -> str:
    return f"{value:.3f}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
