"""What a demo says of its data and of its result."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from smf_jax.data.corpus import Corpus
from smf_jax.demo.recipes import DemoConfig
from smf_jax.evaluate.intervals import show_interval
from smf_jax.evaluate.questions import GROUPS


def describe_data(config: DemoConfig, corpus: Corpus) -> list[str]:
    """Returns what is done with each file, a line each."""

    def count(facts, kind: str) -> int:
        return sum(len(getattr(fact, kind)) for fact in facts)

    known, new = corpus.known, corpus.new
    source = config.facts or "the synthetic world"
    lines = [
        f"{source}: {len(known):,} facts are pretrained on, and to be kept; "
        f"{len(new):,} are new, and taught"
    ]
    for kind in ("statements", "wordings"):
        if of_both := count(known, kind) + count(new, kind):
            of_known = count(known, kind)
            lines.append(
                f"{kind}: {of_known:,} of known facts, pretrained on; "
                f"{of_both - of_known:,} of new facts, taught"
            )
    if asked := count(new, "held_out"):
        lines.append(f"held-out wordings: {asked:,} of new facts, only asked")
    if config.background is not None:
        texts = len(corpus.texts) - count(known, "statements")
        lines.append(f"{config.background}: {texts:,} texts are pretrained on")
    return lines + [f"data: {note}" for note in corpus.notes]


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Prints a table of all methods, with the number of facts of each score."""
    methods = summary["methods"]
    first = next(iter(methods.values()))
    groups = [group for group in ("taught", "held_out") if group in first]
    table = Table(box=box.SIMPLE, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("method", no_wrap=True)
    names = [GROUPS[group].replace(" ", "\n") for group in groups]
    columns = [*names, "known", "forgotten", "at\nequal"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in methods.items():
        scores = [_share(row[group]) for group in groups]
        known = f"{row['known_before']:.3f} -> {row['known']['exact_match']:.3f}"
        table.add_row(name, *scores, known, *_forgotten(row))
    console.print(table)
    counts = ", ".join(f"{GROUPS[g]} {first[g]['n']:,}" for g in (*groups, "known"))
    console.print(
        f"facts asked: {counts}; [...]: 95 % interval\n"
        f"at equal: forgotten when {summary['equal_taught']:.3f} are answered as "
        f"taught\n{summary['rates']}",
    )


def _share(scores: dict[str, Any]) -> str:
    return f"{scores['exact_match']:.3f}\n{show_interval(scores['exact_match_95'])}"


def _forgotten(row: dict[str, Any]) -> tuple[str, str]:
    change, at_equal = row["forgetting"], row["forgotten_at_equal"]
    if change is None:  # nothing was known
        return "", ""
    share = f"{change['forgotten']:.1%}\n{show_interval(change['forgotten_95'], '.1%')}"
    return share, "" if at_equal is None else f"{at_equal:.1%}"
