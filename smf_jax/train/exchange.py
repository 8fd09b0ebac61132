"""Runs from Hugging Face models, and such models from runs."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from smf_jax import checkpoint, hf
from smf_jax.config import DataConfig, ImportConfig, SaveConfig, require
from smf_jax.data.corpus import load_corpus
from smf_jax.data.tokenizer import Tokenizer
from smf_jax.sharding import ONE_DEVICE
from smf_jax.slots import patch
from smf_jax.train.record import Made, describe, made_of, read_record
from smf_jax.train.run import Run, all_params, find_base, load_run, tell_unhealed
from smf_jax.train.start import AUTO, claim, enter_run_dir, find_start


def import_run(
    source: str,
    run_dir: str,
    revision: str | None,
    ignore: Sequence[str],
    data: DataConfig | None,
    console: Console,
) -> Path:
    """Makes a run of a Hugging Face model, and returns its directory.

    Args:
      source: A directory, or a repository.
      run_dir: Where the run is written.
      revision: Of a repository.
      ignore: Keys of its configuration that are set aside.
      data: What it is asked and taught, if anything.
      console: Told what came.

    Raises:
      ConfigError: The model cannot be had or is none of ours, its tokenizer does not
        fit, or the run directory holds something.
    """
    require(jax.process_count() == 1, "a model is imported by one process")
    with claim(run_dir) as path:
        find_start(path, AUTO, console)
        corpus = None if data is None else load_corpus(data)
        folder, commit = hf.fetch(source, revision)
        tokenizer = hf.read_tokenizer(folder)
        model = hf.import_model(folder, ignore)
        if ignore:
            console.print(f"set aside, on your word: {', '.join(ignore)}")
        require(
            tokenizer.num_tokens <= model.config.vocab_size,
            f"{folder}: the tokenizer has {tokenizer.num_tokens} ids, but the model "
            f"has {model.config.vocab_size} (vocab_size)",
        )
        local = commit is None
        imported = ImportConfig(
            # As it is found from any folder, by PEFT among others.
            source=str(folder.resolve()) if local else source,
            revision=commit,
            ignore=tuple(ignore),
            model=model.config,
            end_token=tokenizer.end,
            config=hf.read_json(folder, "config.json"),
            files=hf.carried_files(folder),
            data=data,
        )
        record = describe(
            Made(imported=imported),
            tokenizer,
            corpus_hash=corpus and corpus.hash,
        )
        enter_run_dir(path, None, record, tokenizer, console)
        params = all_params(model)
        with checkpoint.saver(path, SaveConfig()) as saver:
            saver.save(0, {"params": params}, {}, {})
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    console.print(
        f"imported {count:,} parameters of a {imported.config.get('model_type')} of "
        f"{model.config.num_layers} layers; a text begins with "
        f"{_tokens(tokenizer, tokenizer.start)} and ends with "
        f"{_tokens(tokenizer, (tokenizer.end,))}",
        highlight=False,
        markup=False,
    )
    return path


def export_run(
    run_dir: str,
    directory: str,
    patch_file: str | None,
    dtype: hf.Dtype,
    console: Console,
) -> Path:
    """Writes the model of a run for Hugging Face, and returns the directory.

    Args:
      run_dir: The run.
      directory: Where the model is written; must not exist, or be empty.
      patch_file: A patch that is applied first.
      dtype: Of the parameters as they are written.
      console: Told what went.

    Raises:
      ConfigError: There is no such run, the patch is not of its model, or no family
        has such a model.
      ExportError: What was written is not the model.
    """
    require(jax.process_count() == 1, "a model is exported by one process")
    run = load_run(run_dir, placement=ONE_DEVICE)
    tell_unhealed(run, console)
    if patch_file is not None:
        change = patch.load(Path(patch_file))
        require(
            change.base_hash == run.model_hash,
            f"{patch_file} is of model {change.base_hash}, but {run_dir} is "
            f"{run.model_hash}",
        )
        before = [np.asarray(table[...]) for table in run.model.values]
        tables = patch.apply(before, change)
        for table, rows in zip(run.model.values, tables, strict=True):
            table[...] = jax.numpy.asarray(rows)
    imported = run.made.imported
    hf.export_model(
        run.model,
        run.tokenizer,
        directory,
        config=imported and hf.split_config(imported.config)[0],
        carried=imported and imported.files,
        dtype=dtype,
        ignore=() if imported is None else imported.ignore,
        base_name=_base_name(run),
    )
    rounded = "" if dtype == "float32" else f" rounded to {dtype}"
    console.print(
        f"exported {run_dir} to {directory}: read again, it is the same model{rounded}",
        highlight=False,
        markup=False,
    )
    return Path(directory)


def _tokens(tokenizer: Tokenizer, ids: tuple[int, ...]) -> str:
    return " ".join(map(str, map(tokenizer.rules.id_to_token, ids))) or "nothing"


def _base_name(run: Run) -> str:
    """Returns what a run was taught over: where it came from, or else a run."""
    taught = run.made.finetune
    if taught is None:
        return str(run.run_dir)
    base = made_of(read_record(find_base(run.run_dir, taught.base)))
    untouched = base.own is base.imported and run.model.config.memory is None
    return base.imported.source if untouched else taught.base
