"""Teaches facts to a pretrained model: from its files to a taught run, by stages.

    import, unless the model is a run          OUT/base
    ask every fact first, and others to keep   OUT/data/{new,known,keep}.jsonl
    texts: background, and others to measure   OUT/data/{background,texts}.jsonl
    calibrate a memory, for smf                OUT/memory
    teach                                      OUT/smf, OUT/lora or OUT/full

A stage that is finished is used again if its inputs are the same.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from smf_jax.config import (
    DataConfig,
    FinetuneConfig,
    RetrofitConfig,
    TeachConfig,
    finetune_of,
    require,
)
from smf_jax.runs.convert import import_run
from smf_jax.runs.files import CONFIG, TAUGHT, read_result, write_result
from smf_jax.runs.load import is_finished
from smf_jax.runs.lock import lock_run_dir
from smf_jax.runs.record import Lineage, is_record, lineage_of, read_record
from smf_jax.verbs.finetune import finetune
from smf_jax.verbs.retrofit import retrofit
from smf_jax.verbs.teach_data import DATA, Made, make_data, read_sources
from smf_jax.verbs.teach_result import describe_result, print_result

HOW = ("method", "epochs", "rate", "forget_at_most")  # what is taught is in `inputs`
ROWS_PER_DOCUMENT = 4  # of the background


class Teaching(NamedTuple):
    """What was taught, and where."""

    run_dir: Path
    result: dict[str, Any]  # the content of TAUGHT


def teach(config: TeachConfig, console: Console) -> Teaching:
    """Teaches a model the facts that it does not know, and keeps what it does.

    Raises:
      ConfigError: A file or the model cannot be used, there is nothing to teach, or
        `config.out` was made from other inputs.
      Interrupted, TrainingError, SaveError: As `fit` does.
    """
    require(
        not is_record(Path(config.out) / CONFIG),
        f"{config.out} is a run: choose another --out",
    )
    sources = read_sources(config, console)
    with lock_run_dir(config.out) as out:
        clock: dict[str, float] = {}
        run_dir = out / config.method
        with _stage("import", clock, out / "base"):
            base = _base(config, out, console)
        made = make_data(config, base, sources, out, console)
        if is_finished(run_dir) and (result := _earlier(config, out, made)):
            head(f"teach: {run_dir}, already taught", console)
            print_result(result, console)
            return Teaching(run_dir, result)
        if config.method == "smf":
            with _stage("memory", clock, out / "memory"):
                base = _memory(config, base, out, made, console)
        task = _task(config, base, out, made)
        head(f"teach: {made.counts['new']:,} facts by {config.method}", console)
        with _stage("teach", clock, run_dir):
            taught = finetune(task, console)
        clock = made.seconds | clock
        result = {"inputs": made.inputs, "counts": made.counts, "seconds": clock}
        result |= describe_result(config, task, taught)
        write_result(out / TAUGHT, result)
        result = read_result(out / TAUGHT)  # in the types that JSON has
        print_result(result, console)
    return Teaching(run_dir, result)


def _earlier(config: TeachConfig, out: Path, made: Made) -> dict[str, Any] | None:
    """Returns the result of the same command, if it is there."""
    if not (out / TAUGHT).exists():
        return None
    result = read_result(out / TAUGHT)
    same = all(result["config"][name] == getattr(config, name) for name in HOW)
    return result if same and result["inputs"] == made.inputs else None


def head(line: str, console: Console) -> None:
    """Prints the line that begins a stage."""
    console.print(line, style="bold")


@contextmanager
def _stage(name: str, clock: dict[str, float], run_dir: Path) -> Iterator[None]:
    """Times a stage, unless its run is finished already."""
    begin, is_new = time.perf_counter(), not is_finished(run_dir)
    yield
    if is_new:
        clock[name] = time.perf_counter() - begin


def _base(config: TeachConfig, out: Path, console: Console) -> Path:
    """Returns the run to be taught: the model itself, or an import of it."""
    model, base = Path(config.model), out / "base"
    if is_record(model / CONFIG):
        _require_teachable(config, lineage_of(read_record(model)))
        return model
    if not is_finished(base):
        head(f"import: {model}", console)
        return import_run(config.model, str(base), None, (), "auto", None, console)
    source = lineage_of(read_record(base)).imported.source
    require(
        source in (config.model, str(model.resolve())),
        f"{base} is an import of {source}, not of {config.model}: choose another --out",
    )
    head(f"import: {base}, already there", console)
    return base


def _require_teachable(config: TeachConfig, lineage: Lineage) -> None:
    own, memory = lineage.own, lineage.model.memory
    require(
        not isinstance(own, FinetuneConfig) or own.optim.method != "lora",
        f"{config.model} was taught by LoRA, and an adapter cannot be taught over: "
        "name its base, or an export of it",
    )
    require(
        config.method != "smf" or memory is None or memory.num_rows is not None,
        f"{config.model} has trained memory layers, whose rates are its own: teach it "
        "by smf finetune, or by --method lora",
    )


def _memory(
    config: TeachConfig, base: Path, out: Path, made: Made, console: Console
) -> Path:
    """Returns a run with a calibrated memory: the base, or a retrofit of it."""
    if lineage_of(read_record(base)).model.memory is not None:
        head(f"memory: that of {base}", console)
        return base
    head(f"memory: calibrated to {made.counts['background']} texts", console)
    data = DataConfig(
        background=str(out / DATA / "background.jsonl"),
        seq_len=made.counts["text_tokens"],
        batch_size=ROWS_PER_DOCUMENT,
    )
    memory = RetrofitConfig(
        base=str(base),
        run_dir=str(out / "memory"),
        seed=config.seed,
        mesh=config.mesh,
        data=data,
    )
    retrofit(memory, console)
    return out / "memory"


def _task(config: TeachConfig, base: Path, out: Path, made: Made) -> FinetuneConfig:
    files = {name: str(out / DATA / f"{name}.jsonl") for name in made.files}
    keep = tuple(files[name] for name in ("keep", "known") if name in files)
    return finetune_of(
        config,
        str(base),
        str(out / config.method),
        facts=files["new"],
        count=made.counts["new"],
        keep=keep,
        texts=files["texts"],
        seq_len=made.counts["fact_tokens"],
    )
