"""Shows, applies and reverts the patch of a taught run."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import dacite
import jax
import numpy as np
from rich.console import Console

from smf_jax.config import ConfigError, ModelConfig, require
from smf_jax.runs import Run, load_run
from smf_jax.runs.files import PATCH, RETROFIT, SLOTS, USAGE
from smf_jax.runs.load import find_base
from smf_jax.runs.patched import patched, reverted
from smf_jax.runs.record import Lineage, describe, lineage_of, read_record
from smf_jax.runs.write import require_new, write_run
from smf_jax.sharding import ONE_DEVICE
from smf_jax.slots import patch
from smf_jax.slots.patch import Origin, Patch
from smf_jax.verbs.task import Task, earlier_rows

HASHES = ("corpus_hash", "base_hash", "usage_hash")  # of a record
KEPT = (USAGE, RETROFIT, SLOTS, PATCH)  # files that a run is taught over with


def describe_change(change: Patch, run_dir: Path, task: Task) -> Patch:
    """Returns the patch of a run, given its record and the rows that it changed."""
    record = read_record(run_dir)
    memory = lineage_of(record).model.memory
    origin = Origin(
        len(task.facts),
        "trained" if memory.calibrated is None else "calibrated",
        memory.num_slots,
        list(memory.layers),
        *(record[name] for name in ("finetune", "corpus_hash", "usage_hash")),
    )
    change = change._replace(origin=origin)
    if task.rows is None:
        return change
    change = patch.at_slots(change, [task.rows.slots])
    return change._replace(reads=task.reads, added=task.added)


def show(source: str, console: Console) -> None:
    """Prints what a patch file, or the patch of a run, is.

    Raises:
      ConfigError: There is none, or it is damaged.
    """
    path = Path(source)
    path = _patch_of(path) if path.is_dir() else path
    change = patch.load(path)
    lengths, moves = (
        np.concatenate([np.linalg.norm(rows, axis=1) for rows in of_tables])
        for of_tables in (
            [table.after for table in change.tables],
            [table.after - table.before for table in change.tables],
        )
    )
    origin, size = change.origin, path.stat().st_size
    rows = f"{change.rows:,}"
    if origin is not None:
        console.print(f"facts        {origin.facts:,}")
        rows += f" of {origin.num_slots:,} slots"
        layers = ", ".join(map(str, origin.layers))
        console.print(f"memory       {origin.kind}, layer {layers}")
        console.print(f"taught over  {origin.finetune['base']}")
    console.print(f"base         {change.base_hash}")
    console.print(f"rows         {rows}")
    console.print(f"bytes        {size:,}")
    if change.rows:
        console.print(f"row length   mean {lengths.mean():.4g}, {_largest(lengths)}")
        console.print(f"row change   mean {moves.mean():.4g}, {_largest(moves)}")


def _largest(lengths: np.ndarray) -> str:
    return f"largest {lengths.max():.4g}"


def _patch_of(run_dir: Path) -> Path:
    read_record(run_dir)
    path = run_dir / PATCH
    require(
        path.is_file(),
        f"{run_dir} holds no {PATCH}: only smf finetune with optim.method=smf, and smf "
        "patch apply, write one",
    )
    return path


def apply(run_dir: str, patch_file: str, out: str, console: Console) -> None:
    """Writes the run that a patch was made by, given its base.

    Raises:
      ConfigError: The patch is damaged or belongs to another model, or `out` exists.
    """
    require(jax.process_count() == 1, "smf patch apply runs as one process")
    folder, path = require_new(out), Path(patch_file)
    change = patch.load(path)
    require(
        change.origin is not None,
        f"{path} does not say how it was taught: an earlier version wrote it",
    )
    run = load_run(run_dir, layout=ONE_DEVICE)
    model = patched(run, path)
    lineage = _taught_lineage(run, change, path, folder)
    rows = None
    if change.added is not None:
        rows = earlier_rows(run).plus(change.added, change.reads)
    origin = change.origin
    hashes = (origin.corpus_hash, run.model_hash, origin.usage_hash)
    record = describe(lineage, run.tokenizer, **dict(zip(HASHES, hashes, strict=True)))

    def write_files(partial: Path) -> None:
        shutil.copyfile(path, partial / PATCH)
        if rows is not None:
            rows.save(partial / SLOTS)

    write_run(folder, record, run.tokenizer, model, write_files)
    console.print(f"applied {path} to {run_dir}: {change.rows:,} rows")
    console.print(f"run: {out}")


def _taught_lineage(run: Run, change: Patch, path: Path, folder: Path) -> Lineage:
    own = change.origin.finetune
    own |= {"base": str(run.run_dir.absolute()), "run_dir": str(folder)}
    try:
        return lineage_of(read_record(run.run_dir) | {"finetune": own})
    except (dacite.DaciteError, TypeError) as error:
        raise ConfigError(f"{path} was written by another version: {error}") from error


def revert(run_dir: str, out: str, patch_file: str | None, console: Console) -> None:
    """Writes the model that a patch was made over, given the run that it is part of.

    A taught run becomes its base; without `patch_file` the patch is its own. Any other
    run, such as the import of an export, stays what it is but for the patch.

    Raises:
      ConfigError: There is no patch, it is damaged or is not part of the model, or
        `out` exists.
    """
    require(jax.process_count() == 1, "smf patch revert runs as one process")
    folder = require_new(out)
    path = _patch_of(Path(run_dir)) if patch_file is None else Path(patch_file)
    run = load_run(run_dir, layout=ONE_DEVICE)
    model, model_hash = reverted(run, path)
    record, files = _before(run, model.config, folder)

    def write_files(partial: Path) -> None:
        for file in files:
            shutil.copyfile(file, partial / file.name)

    write_run(folder, record, run.tokenizer, model, write_files)
    console.print(
        f"reverted {path}: every parameter has the bits of its base, model {model_hash}"
    )
    console.print(f"run: {out}")


def _before(
    run: Run, config: ModelConfig, folder: Path
) -> tuple[dict[str, Any], list[Path]]:
    """Returns the record of a run without its patch, and the files to copy."""
    lineage, own = run.lineage, run.lineage.own
    if own is not lineage.finetune:  # an import, of which other rows exist now
        imported = dataclasses.replace(lineage.imported, model=config)
        lineage = lineage._replace(imported=imported)
        return describe(lineage, run.tokenizer, corpus_hash=run.corpus_hash), []
    base_dir = find_base(run.run_dir, own.base)
    record = read_record(base_dir)
    lineage = lineage_of(record)
    own, changes = lineage.own, {}
    if own is not lineage.imported:
        changes["run_dir"] = str(folder)
    if own in (lineage.retrofit, lineage.finetune):
        changes["base"] = str(find_base(base_dir, own.base))
    name = next(name for name, part in lineage._asdict().items() if part is own)
    lineage = lineage._replace(**{name: dataclasses.replace(own, **changes)})
    hashes = {name: record[name] for name in HASHES}
    files = [base_dir / name for name in KEPT if (base_dir / name).is_file()]
    return describe(lineage, run.tokenizer, **hashes), files
