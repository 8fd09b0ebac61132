"""What pages of reports have in common: their template, and rows of answers."""

from pathlib import Path
from typing import Any

import jinja2

from smf_jax.config import require
from smf_jax.evaluate.intervals import show_interval
from smf_jax.evaluate.questions import GROUPS
from smf_jax.evaluate.scores import is_exact
from smf_jax.runs.jsonl import read_rows

EXAMPLES = 5  # of each group of questions, for each method
FORGOTTEN = 10  # facts shown for each method


def template(name: str) -> jinja2.Template:
    """Returns a page to render."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("smf_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    environment.filters["interval"] = show_interval
    environment.filters["score"] = lambda value: f"{value:.3f}"
    environment.filters["count"] = lambda number: f"{number:,}"
    return environment.get_template(name)


def metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's training, or raises `ConfigError`."""
    require(path.is_file(), f"{path}: no such file")
    return read_rows(path)


def answers(evaluation: dict, teaching: dict) -> dict[str, list[dict[str, Any]]]:
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


def examples(of_groups: dict[str, list[dict]]) -> list[dict[str, Any]]:
    """Returns some prompts of each group, evenly spaced."""
    return [
        row
        for rows in of_groups.values()
        for row in rows[:: max(len(rows) // EXAMPLES, 1)][:EXAMPLES]
    ]


def lost(known: list[dict], teaching: dict) -> list[dict[str, Any]]:
    """Returns known facts that were answered right before, and are not afterwards."""
    change = teaching["forgetting"]
    lost = set() if change is None else {*change["lost"]}
    return [row for row in known if row["fact"] in lost][:FORGOTTEN]
