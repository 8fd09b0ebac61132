"""One self-contained page about a comparison, drawn from what its runs wrote."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np

from smf_jax.config import require
from smf_jax.evaluate.answers import is_exact
from smf_jax.runs.files import (
    EVALUATION,
    FRONTIER,
    HEALING,
    METRICS,
    REPORT,
    RETROFIT,
    TEACHING,
    read_json,
    write_text,
)
from smf_jax.train.loop import read_rows

matplotlib.use("agg")
from matplotlib import pyplot as plt

EXAMPLES = 10  # questions shown before and after, for each method
COLOURS = {"smf": "#0b6e4f", "lora": "#c75000", "full": "#3b4cc0"}


def write(out: Path) -> Path:
    """Writes `report.html` from the summary and the runs in `out`; returns its path.

    Its first figure stands beside it as `frontier.svg`, too.

    Raises:
      ConfigError: A file of the comparison is missing or broken.
    """
    summary = read_json(out / "summary.json")
    names = list(summary["methods"])
    require(len(names) > 0, f"{out}: the summary names no method")
    teaching = {name: read_json(out / name / TEACHING) for name in names}
    losses = {name: _read_metrics(out / name / METRICS) for name in names}
    frontier = _svg(_draw_frontier, summary["methods"])
    page = _template().render(
        summary=summary,
        frontier=frontier,
        curves=_svg(_draw_curves, summary["methods"]),
        losses=_svg(_draw_losses, losses),
        slots=[
            (name, _svg(_draw_slots, record["slots_by_document_frequency"]))
            for name, record in teaching.items()
            if record["slots_by_document_frequency"] is not None
        ],
        examples={
            name: _examples(read_json(out / name / EVALUATION), teaching[name])
            for name in names
        },
        config=read_json(out / names[0] / "config.json"),
    )
    write_text(out / FRONTIER, frontier)
    write_text(out / REPORT, page)
    return out / REPORT


def draw_retrofit(run_dir: Path) -> Path:
    """Draws how a retrofit healed and how its slots were read; returns the figure.

    Raises:
      ConfigError: The run is no retrofit that came to its end.
    """
    report = read_json(run_dir / RETROFIT)
    write_text(run_dir / HEALING, _svg(_draw_healing, report, panels=2))
    return run_dir / HEALING


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("smf_jax", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    environment.filters["score"] = lambda value: f"{value:.3f}"
    return environment.get_template("report.html.j2")


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    require(path.is_file(), f"{path}: no such file")
    return read_rows(path)


def _svg(draw, content: Any, panels: int = 1) -> str:
    """Returns a figure as text that can stand inside a page."""
    size = (5.2 * panels, 3.6)
    figure, axes = plt.subplots(1, panels, figsize=size, layout="constrained")
    draw(axes, content)
    for panel in figure.axes:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    with io.StringIO() as text:
        # No date and fixed ids: the same runs give the same page.
        with plt.rc_context({"svg.hashsalt": "smf", "svg.fonttype": "none"}):
            figure.savefig(text, format="svg", metadata={"Date": None})
        plt.close(figure)
        return text.getvalue()[text.getvalue().index("<svg") :]


def _draw_frontier(axes: plt.Axes, methods: dict[str, dict]) -> None:
    for name, row in methods.items():
        _, learned, held_out, kept = zip(*row["curve"], strict=True)
        axes.plot(learned, kept, "o-", label=name, color=COLOURS.get(name), ms=4)
        axes.plot(held_out, kept, "o:", color=COLOURS.get(name), ms=3, alpha=0.6)
    axes.set_xlabel("new facts learned (dotted: asked in an untrained wording)")
    axes.set_ylabel("old facts kept")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False)


def _draw_curves(axes: plt.Axes, methods: dict[str, dict]) -> None:
    for name, row in methods.items():
        steps, learned, _, kept = zip(*row["curve"], strict=True)
        colour = COLOURS.get(name)
        axes.plot(steps, learned, "-", color=colour, label=f"{name}: learned")
        axes.plot(steps, kept, "--", color=colour, label=f"{name}: kept")
    axes.set_xlabel("step")
    axes.set_ylabel("exact match of generated answers")
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False, fontsize="small")


def _draw_losses(axes: plt.Axes, losses: dict[str, list[dict]]) -> None:
    for name, rows in losses.items():
        steps = [row["step"] for row in rows]
        values = [row["loss"] for row in rows]
        axes.plot(steps, values, label=name, color=COLOURS.get(name))
    axes.set_xlabel("step")
    axes.set_ylabel("loss on what is taught (nats a token)")
    axes.set_yscale("log")
    axes.legend(frameon=False)


def _draw_slots(axes: plt.Axes, slots: dict[str, Sequence[int]]) -> None:
    documents = len(slots["all"]) - 1
    frequencies = range(documents + 1)
    style = {"width": 1.0, "align": "center"}
    axes.bar(frequencies, slots["all"], color="#cccccc", label="all slots", **style)
    axes.bar(frequencies, slots["written"], color="#0b6e4f", label="written", **style)
    axes.set_xlabel(f"background documents that read the slot (of {documents})")
    axes.set_ylabel("slots")
    axes.set_yscale("log")
    axes.legend(frameon=False)


def _draw_healing(panels: np.ndarray, report: dict[str, Any]) -> None:
    left, right = panels
    steps = [point["step"] for point in report["curve"]]
    losses = [point["loss"] for point in report["curve"]]
    base, gate = report["base"]["loss"], report["base"]["loss"] + report["margin"]
    left.plot(steps, losses, "o-", ms=4, color="#0b6e4f", label="with the memory")
    left.axhline(base, color="#3b4cc0", label="base")
    left.axhline(gate, color="#3b4cc0", ls=":", label="healed below this")
    left.set_xlabel("step")
    left.set_ylabel("held-out loss (nats a token)")
    left.legend(frameon=False)
    measures = {"read": "slots read at all", "top_percent": "reads on the top 1 %"}
    tables = range(len(report["curve"][0]["slots"]))
    for name, label in measures.items():
        for table in tables:
            shares = [point["slots"][table][name] for point in report["curve"]]
            suffix = f", table {table}" if len(tables) > 1 else ""
            right.plot(steps, shares, "o-", ms=4, label=label + suffix)
    right.set_xlabel("step")
    right.set_ylabel("share")
    right.set_ylim(-0.02, 1.02)
    right.legend(frameon=False)


def _examples(evaluation: dict, teaching: dict) -> list[dict[str, Any]]:
    """Returns questions spread evenly over the new and over the old facts."""
    shown = []
    for group, count in (("held_out", EXAMPLES // 2), ("known", EXAMPLES // 2)):
        rows = evaluation["answers"][group]
        before = teaching["answers_before"][group]
        for index in range(0, len(rows), max(len(rows) // count, 1))[:count]:
            row = rows[index]
            shown.append(
                {
                    "kind": "old" if group == "known" else "new",
                    "question": row["question"],
                    "answer": row["answers"][0],
                    "before": before[index],
                    "before_right": is_exact(before[index], row["answers"]),
                    "after": row["answer"],
                    "after_right": is_exact(row["answer"], row["answers"]),
                }
            )
    return shown
