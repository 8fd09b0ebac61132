"""Teaching from Python: a model and facts go in, and the taught model comes out."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from smf_jax.config import TeachConfig
from smf_jax.runs import Run, load_run
from smf_jax.slots import patch
from smf_jax.slots.patch import Patch
from smf_jax.verbs.teach import teach as teach_by_files

Rows = Sequence[Mapping[str, Any]]  # as in the lines of a JSONL file


class Taught(NamedTuple):
    """A taught model, and what was learned and forgotten."""

    run: Run  # with the taught model and its tokenizer
    patch: Patch | None  # the rows that were written; None: by LoRA or in full
    scores: dict[str, Any]  # the content of teach.json
    out: Path | None  # the output directory, if one was named


def teach(
    model: str | Path | Run,
    facts: str | Path | Rows,
    *,
    keep: str | Path | Rows | None = None,
    background: str | Path | Sequence[str] | None = None,
    out: str | Path | None = None,
    console: Console | None = None,
    **settings: Any,
) -> Taught:
    """Teaches a model the facts that it does not know, as `smf teach` does.

    Args:
      model: A repository OWNER/NAME, a directory, FILE.gguf, or a run or its directory.
      facts: A JSONL file, or its rows: `{"question": ..., "answers": [...]}`.
      keep: Facts of which those that the model knows are to be kept.
      background: A JSONL file of texts, or texts; None: the model writes some.
      out: The output directory, in which work continues after an interruption; None: a
        temporary one, which is removed.
      console: Where progress and the table go; None: standard output.
      settings: Other fields of `TeachConfig`, such as `method="lora"` or `epochs=20`.

    Raises:
      ConfigError: As the command does.
    """
    console = console or Console(soft_wrap=True, markup=False, highlight=False)
    with tempfile.TemporaryDirectory() as folder:

        def as_file(name: str, source: Any) -> str:
            if isinstance(source, str | Path):
                return str(source)
            path = Path(folder, f"{name}.jsonl")
            path.write_text("".join(json.dumps(row) + "\n" for row in source))
            return str(path)

        if keep is not None:
            settings["keep"] = (as_file("keep", keep),)
        if background is not None and not isinstance(background, str | Path):
            background = [{"text": text} for text in background]
        if background is not None:
            settings["background"] = as_file("background", background)
        config = TeachConfig(
            model=str(model.run_dir if isinstance(model, Run) else model),
            facts=as_file("facts", facts),
            out=str(Path(folder, "out") if out is None else out),
            **settings,
        )
        run_dir, result = teach_by_files(config, console)
        run = load_run(run_dir, mesh=config.mesh)
        change = result["patch"] and patch.load(Path(result["patch"]))
    return Taught(run, change, result, None if out is None else Path(out))
