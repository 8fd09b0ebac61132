"""Imports Hugging Face models as runs, and exports runs as such models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from smf_jax import checkpoint, hf
from smf_jax.config import DataConfig, ImportConfig, SaveConfig, require
from smf_jax.data.corpus import load_corpus
from smf_jax.data.tokenizer import Tokenizer
from smf_jax.runs.load import Run, all_params, find_base, load_run, warn_unhealed
from smf_jax.runs.open import Resume, open_run
from smf_jax.runs.patched import patched
from smf_jax.runs.record import Lineage, describe, lineage_of, read_record
from smf_jax.sharding import ONE_DEVICE


def import_run(
    source: str,
    run_dir: str,
    revision: str | None,
    ignore: Sequence[str],
    bos: hf.Bos,
    data: DataConfig | None,
    console: Console,
) -> Path:
    """Imports a Hugging Face model as a run, and returns its directory.

    The source is a directory, a GGUF file or a repository of the hub; `ignore` names
    keys of its `config.json`, and `bos` says whether a text starts with a BOS token.
    Evaluation and teaching use the data, if there is any.

    Raises:
      ConfigError: The model is missing or unsupported, its tokenizer does not fit, or
        the run directory is not empty.
    """
    require(jax.process_count() == 1, "smf import-hf runs as one process")
    with open_run(run_dir, console, Resume("never")) as run:
        corpus = None if data is None else load_corpus(data)
        path, commit = hf.fetch(source, revision)
        opened = hf.open_source(path)
        model = hf.import_model(opened, ignore)
        tokenizer, notes = hf.read_tokenizer(opened, model.config.vocab_size, bos)
        for note in notes:
            console.print(f"WARNING: {note}", style="bold red")
        config = hf.read_config_json(opened)
        _report_keys(config, ignore, console)
        imported = ImportConfig(
            # Absolute, so that PEFT and others find it from any folder.
            source=str(path.resolve()) if commit is None else source,
            revision=commit,
            ignore=tuple(ignore),
            model=model.config,
            bos_tokens=tokenizer.bos,
            eos_token=tokenizer.eos,
            other_ends=tokenizer.other_ends,
            config=config,
            files=hf.carried_files(opened),
            data=data,
        )
        lineage = Lineage(imported=imported)
        record = describe(lineage, tokenizer, corpus_hash=corpus and corpus.hash)
        run.begin(record, tokenizer)
        params = all_params(model)
        with checkpoint.saver(run.run_dir, SaveConfig()) as saver:
            saver.save(0, {"params": params}, {}, {})
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    console.print(
        f"imported {imported.config.get('model_type')}: {count:,} parameters, "
        f"{model.config.num_layers} layers, BOS {_tokens(tokenizer, tokenizer.bos)}, "
        f"EOS {_tokens(tokenizer, (tokenizer.eos,))}"
    )
    return run.run_dir


def export_run(
    run_dir: str,
    directory: str,
    patch_file: str | None,
    dtype: hf.Dtype,
    console: Console,
) -> Path:
    """Exports the model of a run for Hugging Face, and returns the directory.

    It must be empty or not exist. A patch is applied first.

    Raises:
      ConfigError: There is no such run, the patch belongs to another model, or no
        supported family has such a model.
      ExportError: What was written differs from the model.
    """
    require(jax.process_count() == 1, "smf export-hf runs as one process")
    run = load_run(run_dir, layout=ONE_DEVICE)
    warn_unhealed(run, console)
    if patch_file is not None:
        run = run._replace(model=patched(run, Path(patch_file)))
    imported = run.lineage.imported
    base_name, base_revision = _base_of(run)
    hf.export_model(
        run.model,
        run.tokenizer,
        directory,
        config=imported and hf.split_config(imported.config)[0],
        carried=imported and imported.files,
        dtype=dtype,
        ignore=() if imported is None else imported.ignore,
        base_name=base_name,
        base_revision=base_revision,
    )
    finetune, is_file = run.lineage.finetune, Path(base_name).suffix == hf.GGUF
    if is_file and finetune is not None and finetune.optim.method == "lora":
        console.print(
            f"WARNING: the adapter names {base_name}, which PEFT cannot load: export "
            f"{find_base(run.run_dir, finetune.base)}, and name that folder as "
            "base_model_name_or_path",
            style="bold red",
        )
    rounded = "" if dtype == "float32" else f" up to rounding to {dtype}"
    console.print(
        f"exported {run_dir} to {directory}: read back, it equals the model{rounded}"
    )
    return Path(directory)


def _report_keys(
    config: dict[str, Any], ignore: Sequence[str], console: Console
) -> None:
    """Prints which keys of a `config.json` the import is without."""
    if ignore:
        console.print(f"ignored, as asked: {', '.join(ignore)}")
    aside = [
        name for name in hf.set_aside(hf.split_config(config)[0]) if name not in ignore
    ]
    if aside:
        console.print(f"set aside, as no logit depends on it: {', '.join(aside)}")


def _tokens(tokenizer: Tokenizer, ids: tuple[int, ...]) -> str:
    return " ".join(map(str, map(tokenizer.rules.id_to_token, ids))) or "none"


def _base_of(run: Run) -> tuple[str, str | None]:
    """Returns the name and the commit of a LoRA adapter's base.

    It is the imported model, or else a run, which has no commit.
    """
    finetune = run.lineage.finetune
    if finetune is None:
        return str(run.run_dir), None
    base = lineage_of(read_record(find_base(run.run_dir, finetune.base)))
    if base.own is base.imported and run.model.config.memory is None:
        return base.imported.source, base.imported.revision
    return finetune.base, None
