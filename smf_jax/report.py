"""Reports of a demo and of a retrofit, drawn from the files of their runs."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np

from smf_jax.config import require
from smf_jax.evaluate.intervals import show_interval
from smf_jax.evaluate.questions import GROUPS
from smf_jax.evaluate.scores import is_exact
from smf_jax.runs.files import (
    CONFIG,
    EVALUATION,
    FRONTIER,
    HEALING,
    METRICS,
    REPORT,
    RETROFIT,
    TEACHING,
    read_json,
    read_result,
    write_text,
)
from smf_jax.runs.jsonl import read_rows

matplotlib.use("agg")
from matplotlib import pyplot as plt

EXAMPLES = 5  # of each group of questions, for each method
FORGOTTEN = 10  # facts shown for each method
COLOURS = {"smf": "#0b6e4f", "lora": "#c75000", "full": "#3b4cc0"}


def write(out: Path) -> Path:
    """Writes `report.html` of the demo in `out`, and returns its path.

    Its first figure is also written as `frontier.svg`.

    Raises:
      ConfigError: A file is missing or damaged.
    """
    summary = read_result(out / "summary.json")
    methods = summary["methods"]
    require(len(methods) > 0, f"{out}: the summary names no method")
    config = read_json(out / next(iter(methods)) / CONFIG)
    losses = {name: _read_metrics(out / name / METRICS) for name in methods}
    teaching = {name: read_result(out / name / TEACHING) for name in methods}
    answers = {
        name: _answers(read_result(out / name / EVALUATION), teaching[name])
        for name in methods
    }
    examples = {name: _examples(of_groups) for name, of_groups in answers.items()}
    lost = {name: _lost(answers[name]["known"], teaching[name]) for name in methods}
    frontier = _svg(_draw_frontier, methods)
    page = _template().render(
        summary=summary,
        config=config,
        groups=GROUPS,
        examples=examples,
        lost=lost,
        frontier=frontier,
        curves=_svg(_draw_curves, methods),
        losses=_svg(_draw_losses, losses),
        slots=[
            (name, _svg(_draw_slots, record["slots_by_document_frequency"]))
            for name, record in teaching.items()
            if record["slots_by_document_frequency"] is not None
        ],
    )
    write_text(out / FRONTIER, frontier)
    write_text(out / REPORT, page)
    return out / REPORT


def draw_retrofit(run_dir: Path) -> Path:
    """Draws the loss and slot usage of a finished retrofit; returns the figure's path.

    Raises:
      ConfigError: The run is not a finished retrofit.
    """
    report = read_result(run_dir / RETROFIT)
    write_text(run_dir / HEALING, _svg(_draw_healing, report, panels=2))
    return run_dir / HEALING


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("smf_jax", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    environment.filters["interval"] = show_interval
    environment.filters["score"] = lambda value: f"{value:.3f}"
    environment.filters["count"] = lambda number: f"{number:,}"
    return environment.get_template("report.html.j2")


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    require(path.is_file(), f"{path}: no such file")
    return read_rows(path)


def _svg(draw: Callable, content: Any, panels: int = 1) -> str:
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


def _draw_frontier(axes: plt.Axes, methods: dict[str, dict]) -> None:
    for name, row in methods.items():
        _, taught, held_out, known = zip(*row["curve"], strict=True)
        axes.plot(taught, known, "o-", label=name, color=COLOURS.get(name), ms=4)
        if None not in held_out:
            axes.plot(held_out, known, "o:", color=COLOURS.get(name), ms=3, alpha=0.6)
    _label(axes, "new facts: taught (dotted: held-out wording)", "known facts")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)


def _draw_curves(axes: plt.Axes, methods: dict[str, dict]) -> None:
    for name, row in methods.items():
        steps, taught, _, known = zip(*row["curve"], strict=True)
        colour = COLOURS.get(name)
        axes.plot(steps, taught, "-", color=colour, label=f"{name}: taught")
        axes.plot(steps, known, "--", color=colour, label=f"{name}: known")
    _label(axes, "step", "exact match")
    axes.set_ylim(-0.02, 1.02)


def _draw_losses(axes: plt.Axes, losses: dict[str, list[dict]]) -> None:
    for name, rows in losses.items():
        steps = [row["step"] for row in rows]
        values = [row["loss"] for row in rows]
        axes.plot(steps, values, label=name, color=COLOURS.get(name))
    _label(axes, "step", "training loss (nats per token)")
    axes.set_yscale("log")


def _draw_slots(axes: plt.Axes, slots: dict[str, Sequence[int]]) -> None:
    documents = len(slots["all"]) - 1
    frequencies = range(documents + 1)
    for name, colour in (("all", "#cccccc"), ("written", "#0b6e4f")):
        axes.bar(frequencies, slots[name], width=1.0, color=colour, label=name)
    _label(axes, f"background documents that read the slot (of {documents})", "slots")
    axes.set_yscale("log")


def _draw_healing(panels: np.ndarray, report: dict[str, Any]) -> None:
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


def _answers(evaluation: dict, teaching: dict) -> dict[str, list[dict[str, Any]]]:
    """Returns the prompts of each group, with the answers before and after."""

    def mark(answer: str, row: dict) -> tuple[str, bool]:
        goes_on = not row["is_question"]
        return answer, is_exact(answer, row["answers"], goes_on=goes_on)

    return {
        group: [
            {
                "fact": row["fact"],
                "kind": GROUPS[group],
                "prompt": row["text"],
                "expected": row["answers"][0],
                "answers": [mark(before, row), mark(row["answer"], row)],
            }
            for before, row in zip(teaching["answers_before"][group], rows, strict=True)
        ]
        for group, rows in evaluation["answers"].items()
    }


def _examples(of_groups: dict[str, list[dict]]) -> list[dict[str, Any]]:
    """Returns some prompts of each group, evenly spaced."""
    return [
        row
        for rows in of_groups.values()
        for row in rows[:: max(len(rows) // EXAMPLES, 1)][:EXAMPLES]
    ]


def _lost(known: list[dict], teaching: dict) -> list[dict[str, Any]]:
    """Returns known facts that were answered right before, and are not afterwards."""
    change = teaching["forgetting"]
    lost = set() if change is None else {*change["lost"]}
    return [row for row in known if row["fact"] in lost][:FORGOTTEN]
