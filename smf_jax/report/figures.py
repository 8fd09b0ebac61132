"""Figures of reports, as SVG to embed in a page."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot as plt

COLOURS = {"smf": "#0b6e4f", "lora": "#c75000", "full": "#3b4cc0"}


def svg(draw: Callable, content: Any, panels: int = 1) -> str:
    """Returns a figure as SVG to embed in a page."""
    size = (5.2 * panels, 3.6)
    figure, axes = plt.subplots(1, panels, figsize=size, layout="constrained")
    draw(axes, content)
    for panel in figure.axes:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize="small")
    with io.StringIO() as text:
        # No date and fixed ids: the same runs give the same page.
        with plt.rc_context({"svg.hashsalt": "smf", "svg.fonttype": "none"}):
            figure.savefig(text, format="svg", metadata={"Date": None})
        plt.close(figure)
        return text.getvalue()[text.getvalue().index("<svg") :]


def _label(axes: plt.Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def draw_frontier(axes: plt.Axes, methods: dict[str, dict]) -> None:
    """Draws new facts against known ones, over each run."""
    for name, row in methods.items():
        _, taught, held_out, known = zip(*row["curve"], strict=True)
        axes.plot(taught, known, "o-", label=name, color=COLOURS.get(name), ms=4)
        if None not in held_out:
            axes.plot(held_out, known, "o:", color=COLOURS.get(name), ms=3, alpha=0.6)
    _label(axes, "new facts: taught (dotted: held-out wording)", "known facts")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)


def draw_curves(axes: plt.Axes, methods: dict[str, dict]) -> None:
    """Draws exact matches by step."""
    for name, row in methods.items():
        steps, taught, _, known = zip(*row["curve"], strict=True)
        colour = COLOURS.get(name)
        axes.plot(steps, taught, "-", color=colour, label=f"{name}: taught")
        axes.plot(steps, known, "--", color=colour, label=f"{name}: known")
    _label(axes, "step", "exact match")
    axes.set_ylim(-0.02, 1.02)


def draw_losses(axes: plt.Axes, losses: dict[str, list[dict]]) -> None:
    """Draws training losses by step."""
    for name, rows in losses.items():
        steps = [row["step"] for row in rows]
        values = [row["loss"] for row in rows]
        axes.plot(steps, values, label=name, color=COLOURS.get(name))
    _label(axes, "step", "training loss (nats per token)")
    axes.set_yscale("log")


def draw_slots(axes: plt.Axes, slots: dict[str, Sequence[int]]) -> None:
    """Draws how many slots there are, and were written, by document frequency."""
    documents = len(slots["all"]) - 1
    frequencies = range(documents + 1)
    for name, colour in (("all", "#cccccc"), ("written", "#0b6e4f")):
        axes.bar(frequencies, slots[name], width=1.0, color=colour, label=name)
    _label(axes, f"background documents that read the slot (of {documents})", "slots")
    axes.set_yscale("log")


def draw_healing(panels: np.ndarray, report: dict[str, Any]) -> None:
    """Draws the held-out loss of a retrofit, and how slots are used."""
    left, right = panels
    steps = [point["step"] for point in report["curve"]]
    losses = [point["loss"] for point in report["curve"]]
    base = report["base"]["loss"]
    left.plot(steps, losses, "o-", ms=4, color="#0b6e4f", label="with memory layers")
    left.axhline(base, color="#3b4cc0", label="base")
    left.axhline(base + report["margin"], color="#3b4cc0", ls=":", label="healed below")
    _label(left, "step", "held-out loss (nats per token)")
    measures = {"read": "slots read", "top_percent": "reads of the top 1% of slots"}
    tables = range(len(report["curve"][0]["slots"]))
    for name, label in measures.items():
        for table in tables:
            shares = [point["slots"][table][name] for point in report["curve"]]
            suffix = f", table {table}" if len(tables) > 1 else ""
            right.plot(steps, shares, "o-", ms=4, label=label + suffix)
    _label(right, "step", "share")
    right.set_ylim(-0.02, 1.02)
