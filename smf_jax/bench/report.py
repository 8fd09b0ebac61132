"""A bench as one reads it: a table for each part, and a figure."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

from smf_jax.bench.config import KNOWN, BenchConfig

matplotlib.use("agg")
from matplotlib import pyplot as plt

FIGURE = "bench.svg"


def show(config: BenchConfig, results: dict[str, Any], console: Console) -> None:
    """Prints what was timed."""
    tokens = config.texts * config.seq_len
    if lookup := results.get("lookup"):
        console.print(_lookup(lookup))
    if ranking := results.get("ranking"):
        console.print(_ratios("ranking of slots", ranking, tokens))
    if methods := results.get("methods"):
        for group in methods["groups"]:
            console.print(_ratios("steps", group, tokens))
        console.print(_sizes(methods["sizes"]))
        for line in _beyond_dense(methods["groups"]):
            console.print(line, highlight=False)
    if pretraining := results.get("pretraining"):
        for group in pretraining["groups"]:
            console.print(_ratios("pretraining with", group, tokens))
        console.print(_sizes(pretraining["sizes"]))
    if slots := results.get("slots"):
        console.print(_slots(slots))
    if decoding := results.get("decoding"):
        of = decoding["tokens decoded, smf_jax"]
        speed = decoding["new_tokens"] / of["median"]
        console.print(f"decoding: {speed:,.0f} tokens/s, prompts included")


def _row(name: str, of: dict[str, float], *more: str) -> tuple[str, ...]:
    median, least, most = (of[key] * 1e3 for key in ("median", "least", "most"))
    digits = 3 if median < 10 else 1
    spread = f"{least:.{digits}f} - {most:.{digits}f}"
    return (name, f"{median:.{digits}f}", spread, *more)


def _lookup(lookup: dict[str, Any]) -> Table:
    copy = lookup["copying"]["bytes"] / lookup["copying"]["median"]
    table = Table("lookup", "ms", "from - to", "GB/s", "of copying")
    for name, of in lookup.items():
        speed = (of["bytes"] or 0) / of["median"]
        cells = (f"{speed / 1e9:.2f}", f"{speed / copy:.2f}") if speed else ()
        table.add_row(*_row(name, of, *cells))
    return table


def _ratios(title: str, group: dict[str, dict[str, float]], tokens: int) -> Table:
    table = Table(title, "ms", "from - to", "tokens/s", "times the first")
    first = next(iter(group.values()))["median"]
    for name, of in group.items():
        cells = (f"{tokens / of['median']:,.0f}", f"{of['median'] / first:.2f}")
        table.add_row(*_row(name, of, *cells))
    return table


def _sizes(sizes: dict[str, Any]) -> Table:
    table = Table("memory", "peak, MB", "of it given, MB", "numbers a step may change")
    if forward := sizes.get("forward_peak"):
        table.add_row("forward alone", f"{forward / 1e6:,.0f}", "", "")
    for name, of in sizes.items():
        if isinstance(of, dict):
            megabytes = (f"{of[part] / 1e6:,.0f}" for part in ("peak", "held"))
            table.add_row(name, *megabytes, f"{of['trainable']:,}")
    return table


def _beyond_dense(groups: list[dict[str, Any]]) -> list[str]:
    """Returns in words what a step costs beyond its dense layers, where told.

    Medians of the differences of each turn: noise of minutes is in both of a turn.
    """
    pairs = (
        ("smf", "smf, dense layers"),
        (KNOWN, f"{KNOWN}, dense layers"),
        ("PyTorch, sparse", "PyTorch, dense layers"),
        ("PyTorch, masked", "PyTorch, dense layers"),
    )
    lines = []
    for group in groups:
        for whole, dense in pairs:
            if {whole, dense} <= group.keys():
                turns = zip(group[whole]["turns"], group[dense]["turns"], strict=True)
                cost = statistics.median(of - without for of, without in turns)
                lines.append(f"beyond its dense layers, {whole}: {cost * 1e3:.0f} ms")
    return lines


def _slots(slots: dict[str, dict[str, Any]]) -> Table:
    table = Table("slots", "ms", "from - to", "times the least")
    for count, pair in slots.items():
        ratio = pair["step"]["median"] / pair["least"]["median"]
        table.add_row(*_row(f"{int(count):,}", pair["step"], f"{ratio:.2f}"))
    return table


def draw(config: BenchConfig, results: dict[str, Any]) -> Path:
    """Draws steps beside one another and their growth; returns the figure's path."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.4, 3.6), layout="constrained"
    )
    groups = results.get("methods", {"groups": []})["groups"]
    ratios = {
        name: of["median"] / group["smf"]["median"]
        for group in groups
        for name, of in group.items()
    }
    left.barh(list(ratios), list(ratios.values()), color="#0b6e4f")
    left.axvline(1, color="#888888", lw=1)
    left.set_xlabel("time of a step, that of SMF = 1")
    left.invert_yaxis()
    slots = results.get("slots", {})
    counts = [int(count) for count in slots]
    growth = [p["step"]["median"] / p["least"]["median"] for p in slots.values()]
    right.plot(counts, growth, "o-", color="#0b6e4f")
    right.set_xscale("log", base=2)
    right.set_ylim(bottom=0)
    right.set_xlabel("slots")
    right.set_ylabel("time of a step of SMF, the least table's = 1")
    for panel in (left, right):
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    path = Path(config.out) / FIGURE
    figure.savefig(path)
    plt.close(figure)
    return path
