"""The results of a benchmark as tables."""

import statistics
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def show(part: str, result: dict[str, Any], console: Console) -> None:
    """Prints the times of a part, then the memory and extra cost of its steps."""
    unit, rate_unit, scale = "token", "tokens/s", 1
    if part == "lookup":
        unit, rate_unit, scale = "byte", "GB/s", 1e9
    times = _table(part, "ms", "min - max", rate_unit, "ratio")
    times.caption = f"ratio: time per {unit}, relative to the first row of a section"
    sizes = {}
    for group in result["groups"]:
        baseline = next(iter(group.values()))
        first = baseline["median"] / baseline["amount"]
        for name, case in group.items():
            cells = _times(case)
            if case["amount"] is not None:
                seconds = case["median"] / case["amount"]
                rate = 1 / seconds / scale
                cells += [
                    f"{rate:,.{0 if rate > 100 else 2}f}",
                    f"{seconds / first:.2f}",
                ]
            times.add_row(name, *cells)
            if case["sizes"] is not None:
                sizes[name] = case["sizes"]
        times.add_section()
    console.print(times)
    if sizes:
        console.print(_sizes(sizes, result.get("forward_peak")))
    for line in _memory_costs(result["groups"]):
        console.print(line)


def _table(first: str, *columns: str) -> Table:
    table = Table(first, box=box.SIMPLE, caption_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _times(case: dict[str, Any]) -> list[str]:
    digits = 3 if case["median"] < 0.01 else 1
    median, least, most = (
        f"{case[key] * 1e3:.{digits}f}" for key in ("median", "min", "max")
    )
    return [median, f"{least} - {most}"]


def _sizes(sizes: dict[str, dict[str, int]], forward_peak: int | None) -> Table:
    table = _table("step", "peak MB", "arguments MB", "trainable")
    if forward_peak is not None:
        table.add_row("forward pass alone", f"{forward_peak / 1e6:,.0f}")
    for name, of in sizes.items():
        megabytes = (f"{of[key] / 1e6:,.0f}" for key in ("peak", "arguments"))
        table.add_row(name, *megabytes, f"{of['trainable']:,}")
    return table


def _memory_costs(groups: list[dict[str, Any]]) -> Iterator[str]:
    """Yields what memory layers add to steps that were timed beside dense-only ones.

    It is the median difference of samples that were taken in turn, which share slow
    noise.
    """
    for group in groups:
        for name, dense in group.items():
            full = group.get(name.removesuffix(", dense only"))
            if full is not None and full is not dense:
                pairs = zip(full["samples"], dense["samples"], strict=True)
                cost = statistics.median(one - other for one, other in pairs)
                name = name.removesuffix(", dense only")
                yield f"cost of memory layers, {name}: {cost * 1e3:.0f} ms"
