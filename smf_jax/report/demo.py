"""The report of a demo."""

from pathlib import Path

from smf_jax.config import require
from smf_jax.evaluate.questions import GROUPS
from smf_jax.report.figures import (
    draw_curves,
    draw_frontier,
    draw_losses,
    draw_slots,
    svg,
)
from smf_jax.report.page import answers, examples, lost, metrics, template
from smf_jax.runs.files import (
    CONFIG,
    EVALUATION,
    FRONTIER,
    METRICS,
    REPORT,
    TEACHING,
    read_json,
    read_result,
    write_text,
)


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
    losses = {name: metrics(out / name / METRICS) for name in methods}
    teaching = {name: read_result(out / name / TEACHING) for name in methods}
    of_methods = {
        name: answers(read_result(out / name / EVALUATION), teaching[name])
        for name in methods
    }
    frontier = svg(draw_frontier, methods)
    page = template("demo.html.j2").render(
        summary=summary,
        config=config,
        groups=GROUPS,
        examples={name: examples(groups) for name, groups in of_methods.items()},
        lost={
            n: lost(groups["known"], teaching[n]) for n, groups in of_methods.items()
        },
        frontier=frontier,
        curves=svg(draw_curves, methods),
        losses=svg(draw_losses, losses),
        slots=[
            (name, svg(draw_slots, record["slots_by_document_frequency"]))
            for name, record in teaching.items()
            if record["slots_by_document_frequency"] is not None
        ],
    )
    write_text(out / FRONTIER, frontier)
    write_text(out / REPORT, page)
    return out / REPORT
