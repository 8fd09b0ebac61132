"""The report of a model that was taught by one command."""

from pathlib import Path

from smf_jax.evaluate.questions import GROUPS
from smf_jax.report.figures import draw_curves, draw_losses, draw_slots, svg
from smf_jax.report.page import answers, examples, lost, metrics, template
from smf_jax.runs.files import (
    CONFIG,
    EVALUATION,
    METRICS,
    REPORT,
    TAUGHT,
    TEACHING,
    read_json,
    read_result,
    write_text,
)
from smf_jax.verbs.budget import tell_budget
from smf_jax.verbs.teach_result import next_commands


def write_teach(out: Path) -> Path:
    """Writes `report.html` of what was taught last in `out`, and returns its path.

    Raises:
      ConfigError: A file is missing or damaged.
    """
    result = read_result(out / TAUGHT)
    method = result["method"]
    run_dir = out / method
    teaching = read_result(run_dir / TEACHING)
    of_groups = answers(read_result(run_dir / EVALUATION), teaching)
    histogram = teaching["slots_by_document_frequency"]
    page = template("teach.html.j2").render(
        result=result,
        config=read_json(run_dir / CONFIG),
        groups=GROUPS,
        budget=result["budget"] and tell_budget(result["budget"]),
        commands=next_commands(result),
        examples=examples(of_groups),
        lost=lost(of_groups.get("known", []), teaching),
        curves=svg(draw_curves, {method: result}),
        losses=svg(draw_losses, {method: metrics(run_dir / METRICS)}),
        slots=None if histogram is None else svg(draw_slots, histogram),
    )
    write_text(out / REPORT, page)
    return out / REPORT
