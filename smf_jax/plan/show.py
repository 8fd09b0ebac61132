"""A plan as one reads it."""

import collections
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from smf_jax.config import name_mesh
from smf_jax.plan.advice import Config, what_to_change
from smf_jax.plan.outcome import Outcome
from smf_jax.plan.topology import find
from smf_jax.plan.words import gib, verdict

SHOWN = 12  # kinds of exchange, of the heaviest
NOT_TOLD = "not told by this compiler"


def show(plan: dict[str, list[Outcome]], config: Config, console: Console) -> None:
    """Prints the best of each topology, and all that were compared."""
    for name, outcomes in plan.items():
        nearest = min(outcomes, key=lambda each: each.needs or math.inf)
        best = next((each for each in outcomes if each.fits), nearest)
        if len(outcomes) > 1:
            console.print(_comparison(name, outcomes))
        _show_one(best, config, console)


def _show_one(outcome: Outcome, config: Config, console: Console) -> None:
    title = f"{outcome.topology}, {name_mesh(outcome.mesh)}"
    console.print(f"\n[bold]{title}[/bold]", highlight=False)
    if outcome.groups is not None:
        console.print(_memory(outcome))
    if outcome.largest:
        console.print(_largest(outcome.largest))
    if outcome.measured is not None:
        _show_work(outcome.measured, console)
    if outcome.fits is False:
        console.print("to change, any of:", highlight=False)
        for line in what_to_change(outcome, find(outcome.topology), config):
            console.print(f"  {line}", highlight=False, markup=False)
    console.print(f"{outcome.topology} {verdict(outcome)}", highlight=False)


def _memory(outcome: Outcome) -> Table:
    table = Table("bytes a device", "", title_justify="left")
    table.columns[1].justify = "right"
    for name, count in outcome.groups.items():
        table.add_row(name, gib(count))
    if outcome.measured is not None:
        table.add_section()
        table.add_row(
            "arguments, as they are laid out", gib(outcome.measured["arguments"])
        )
        table.add_row(
            "activations, gradients, work space", gib(outcome.measured["temporary"])
        )
        table.add_row("written in place of arguments", gib(outcome.measured["alias"]))
        table.add_row("the most at once", gib(outcome.measured["peak"]))
    table.add_section()
    table.add_row("for programs", gib(outcome.has))
    return table


def _largest(largest: Sequence[dict[str, Any]]) -> Table:
    table = Table("largest", "array", "made by")
    alike = collections.Counter(tuple(each.values()) for each in largest)
    for (size, array, source), count in list(alike.items())[:SHOWN]:
        times = f"{count} x " if count > 1 else ""
        table.add_row(times + gib(size), array, source)
    return table


def _show_work(measured: dict[str, Any], console: Console) -> None:
    once = "; of a loop, one round is counted" if measured["loops"] else ""
    flops, accessed = measured["flops"], measured["accessed"]
    lines = (
        ("operations", NOT_TOLD if flops is None else f"{flops:.3g} FLOP{once}"),
        (
            "read and written",
            NOT_TOLD if accessed is None else gib(int(accessed)) + once,
        ),
        ("sent to others", gib(measured["sent"])),
    )
    for name, value in lines:
        console.print(f"{name} a step and device: {value}", highlight=False)
    exchanges = measured["collectives"]
    if not exchanges:
        return
    table = Table("exchange", "arrays", "along", "bytes", "times", "sent a step")
    for place in (0, 3, 4, 5):
        table.columns[place].no_wrap = True
    for each in exchanges[:SHOWN]:
        arrays, axes = each["arrays"], each["axes"]
        more = f" +{len(arrays) - 1}" if len(arrays) > 1 else ""
        times = each["times"]
        table.add_row(
            each["kind"],
            f"{arrays[0]}{more}",
            f"{each['ways']} devices" if axes is None else ", ".join(axes),
            gib(each["size"]),
            "in a loop" if times is None else str(times),
            f"{gib(each['sent'])} a round"
            if times is None
            else gib(each["sent"] * times),
        )
    console.print(table)
    if len(exchanges) > SHOWN:
        console.print(f"and {len(exchanges) - SHOWN} lighter ones: --json has them all")


def _comparison(name: str, outcomes: Sequence[Outcome]) -> Table:
    table = Table("topology", "mesh", "", "needs a device", "sent a step")
    for each in outcomes:
        word = {True: "fits", False: "too large", None: "no answer"}[each.fits]
        table.add_row(
            each.topology,
            name_mesh(each.mesh),
            word,
            (each.why or "")[:60] if each.needs is None else gib(each.needs),
            gib(each.measured["sent"]) if each.measured else "",
        )
    return table
