"""Loads a finished run: its model, tokenizer and lineage."""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import PyTree
from rich.console import Console

from smf_jax import checkpoint, hf
from smf_jax.config import (
    ConfigError,
    DataConfig,
    FinetuneConfig,
    MemoryConfig,
    MeshConfig,
    ModelConfig,
    RetrofitConfig,
    path_of,
    require,
    with_path,
)
from smf_jax.data.corpus import Corpus, load_corpus, no_corpus
from smf_jax.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_hash
from smf_jax.model.build import abstract_model, assemble, with_rows
from smf_jax.model.lora import add_lora
from smf_jax.model.transformer import Transformer
from smf_jax.runs.files import CONFIG, RETROFIT, SLOTS, TOKENIZER, read_result
from smf_jax.runs.layout import layout_of
from smf_jax.runs.record import (
    Lineage,
    lineage_of,
    read_record,
    saved_variables,
)
from smf_jax.sharding import MeshLayout, make_layout, with_shardings
from smf_jax.slots.sparse_table import Rows
from smf_jax.tree import named


class Run(NamedTuple):
    """A loaded run."""

    run_dir: Path
    lineage: Lineage  # how its model was made
    model: nnx.Module
    tokenizer: Tokenizer
    step: int
    corpus_hash: str | None  # of its training data, or of the facts it was taught
    model_hash: str  # SHA-256 of the names and digests of all parameters

    @property
    def data(self) -> DataConfig:
        """The data of pretraining or retrofitting; raises `ConfigError` without."""
        data = self.lineage.data
        advice = "" if self.model.config.memory else ", or retrofit it"
        require(
            data is not None,
            f"{self.run_dir} was imported without data: import it with --facts or "
            f"--background{advice}",
        )
        return data

    @property
    def memory(self) -> MemoryConfig:
        """The model's memory layers; raises `ConfigError` if it has none."""
        memory = self.model.config.memory
        require(
            memory is not None,
            f"{self.run_dir}: the model has no memory layers: retrofit it",
        )
        return memory


def is_finished(run_dir: str | Path) -> bool:
    """Returns whether a run completed all its steps and saved the last one."""
    step = checkpoint.latest_step(Path(run_dir))
    return step is not None and step >= lineage_of(read_record(Path(run_dir))).steps


def load_run(
    run_dir: str | Path,
    step: int | None = None,
    layout: MeshLayout | None = None,
    mesh: MeshConfig | None = None,
) -> Run:
    """Loads a finished run, or the checkpoint of a step.

    Without a layout, `mesh` is where the model goes, by default as in `layout_of`.

    Raises:
      ConfigError: There is no such run or checkpoint, its files do not belong together,
        or the model does not fit the mesh.
    """
    run_dir = Path(run_dir)
    record = read_record(run_dir)
    lineage = lineage_of(record)
    steps = checkpoint.steps(run_dir)
    require(len(steps) > 0, f"{run_dir} holds no checkpoint")
    if step is None:
        step, last = steps[-1], lineage.steps
        require(
            step >= last,
            f"{run_dir} was interrupted after step {step} of {last}: resume it with "
            f"the command that started it (smf evaluate --step {step} works now)",
        )
    require(step in steps, f"{run_dir} holds no step {step}, only {steps}")
    # Before any of these files is parsed.
    damaged = checkpoint.run_file_problems(run_dir, checkpoint.read(run_dir, step))
    require(not damaged, "; ".join(damaged))
    tokenizer = _load_tokenizer(run_dir, lineage)
    require(
        tokenizer_hash(tokenizer) == record["tokenizer_hash"],
        f"{run_dir / TOKENIZER} is not the tokenizer of this model, which has hash "
        f"{record['tokenizer_hash']}",
    )
    layout = layout or layout_of(lineage, mesh)
    model = _load_model(run_dir, step, record, lineage, tokenizer, layout)
    model_hash = checkpoint.params_hash(all_params(model))
    hashes = (record["corpus_hash"], model_hash)
    return Run(run_dir, lineage, model, tokenizer, step, *hashes)


def _load_tokenizer(run_dir: Path, lineage: Lineage) -> Tokenizer:
    path, imported = run_dir / TOKENIZER, lineage.imported
    if imported is None:
        return load_tokenizer(path)
    ends, bos = imported.other_ends, imported.bos_tokens
    tokenizer = load_tokenizer(path, imported.eos_token, ends, bos)
    known = imported.model.vocab_size
    return tokenizer._replace(
        template=hf.template_of(imported.files),
        vocab_size=known if known < tokenizer.num_tokens else None,
    )


def require_context(seq_len: int, run: Run) -> None:
    """Raises `ConfigError` if a model does not support texts of so many tokens."""
    longest = run.lineage.context_length
    require(
        longest is None or seq_len <= longest,
        f"seq_len={seq_len} exceeds the context of {longest} tokens of the model of "
        f"{run.run_dir} (max_position_embeddings)",
    )


def load_base(config: FinetuneConfig | RetrofitConfig, console: Console) -> Run:
    """Loads the run that is trained further, on the mesh of the new run.

    Raises:
      ConfigError: There is none, it is a LoRA run, or it does not fit the mesh.
    """
    run_dir = Path(config.base)
    require(
        run_dir.is_dir(),
        f"{run_dir}: no such run directory: make this base first, or name another with "
        "--base",
    )
    memory = lineage_of(read_record(run_dir)).model.memory
    if isinstance(config, RetrofitConfig):
        memory = config.memory
    layout = make_layout(config.mesh, config.compute, memory)
    run = load_run(run_dir, layout=layout)
    own = run.lineage.own
    require(
        not isinstance(own, FinetuneConfig) or own.optim.method != "lora",
        f"{run_dir} was taught by LoRA, and an adapter cannot be trained over: use its "
        "base",
    )
    warn_unhealed(run, console)
    return run


def warn_unhealed(run: Run, console: Console) -> None:
    """Prints a warning if a run is a retrofit that has not healed."""
    if run.lineage.own is not run.lineage.retrofit or run.step < run.lineage.steps:
        return
    record = checkpoint.read(run.run_dir, run.step)
    damaged = checkpoint.output_problems(run.run_dir, record)
    require(not damaged, "; ".join(damaged))
    if not read_result(run.run_dir / RETROFIT)["healed"]:
        line = f"WARNING: {run.run_dir} has not healed (see its {RETROFIT})"
        console.print(line, style="bold red")


def _load_model(
    run_dir, step, record, lineage: Lineage, tokenizer, layout
) -> Transformer:
    own, saved = lineage.own, saved_variables(lineage)
    if saved is nnx.Variable:
        model = abstract_model(model_config(lineage, tokenizer), layout)
    else:  # the checkpoint holds the trainable parameters, the base all others
        base = load_run(find_base(run_dir, own.base), layout=layout)
        require(
            base.model_hash == record["base_hash"],
            f"{run_dir} was trained over model {record['base_hash']}, but "
            f"{base.run_dir} is {base.model_hash}",
        )
        model, method = base.model, own.optim.method
        if method == "lora":
            add_lora(model, own.optim.lora, rngs=nnx.Rngs(own.seed))
        elif method == "smf" and model.config.memory.num_rows is not None:
            model = with_rows(model, Rows.load(run_dir / SLOTS).slots)
        elif own is lineage.retrofit:
            fresh = abstract_model(model_config(lineage, tokenizer), layout)
            memory = nnx.state(fresh, saved)
            loaded = _load_params(run_dir, step, memory, layout)
            return assemble(fresh, named(all_params(model)) | named(loaded))
    graph, trained, rest = nnx.split(model, saved, ...)
    return nnx.merge(graph, _load_params(run_dir, step, trained, layout), rest)


def _load_params(
    run_dir: Path, step: int, trained: PyTree, layout: MeshLayout
) -> PyTree:
    abstract = jax.eval_shape(lambda: nnx.as_pure(trained))
    for leaf in jax.tree.leaves(trained):
        if isinstance(leaf, jax.Array):  # the base's: never two copies on the devices
            leaf.delete()
    abstract = with_shardings(abstract, layout.param_shardings(abstract))
    return checkpoint.load(run_dir, step, {"params": abstract})[0]["params"]


def corpus_of(run: Run) -> Corpus:
    """Returns the training data of a run, empty if it was imported without.

    Raises:
      ConfigError: A file is missing or has changed since.
    """
    if run.lineage.data is None:
        return no_corpus()
    corpus = load_corpus(located(run, run.lineage.data))
    require(
        run.lineage.finetune is not None or run.corpus_hash == corpus.hash,
        f"the facts or texts of {run.run_dir} have changed since it was trained (hash "
        f"{run.corpus_hash} then, {corpus.hash} now)",
    )
    return corpus


def located(run: Run, config: Any) -> Any:
    """Returns a recorded configuration with its files where they are now.

    If a file is gone, it may have moved together with the run.
    """
    changes = {}
    for name in ("facts", "patterns", "background", "texts"):
        recorded = getattr(config, name, None)
        if isinstance(recorded, tuple):
            changes[name] = tuple(_located(run, source) for source in recorded)
        elif recorded is not None:
            changes[name] = _located(run, recorded)
    if isinstance(config, FinetuneConfig):
        changes["keep"] = located(run, config.keep)
    return dataclasses.replace(config, **changes)


def _located(run: Run, source: str) -> str:
    path, then = path_of(source), run.lineage.own
    if path is None or path.exists() or then is run.lineage.imported:
        return source
    moved = run.run_dir / os.path.relpath(path, then.run_dir)
    return with_path(source, moved) if moved.exists() else source


def find_base(run_dir: Path, base: str) -> Path:
    """Returns the directory of a run's base: its recorded path, or beside the run."""
    recorded = Path(base)
    candidates = (recorded, run_dir.parent / recorded.name)
    for path in candidates:
        if (path / CONFIG).is_file():
            return path
    paths = " nor ".join(dict.fromkeys(map(str, candidates)))
    raise ConfigError(f"{run_dir}: its base is not at {paths}: put it back there")


def model_config(lineage: Lineage, tokenizer: Tokenizer) -> ModelConfig:
    """Returns the configuration of a model with its `vocab_size` filled in."""
    tokens, config = tokenizer.num_tokens, lineage.model
    require(  # an imported model may know fewer: see `hf.read_tokenizer`
        config.vocab_size == 0
        or config.vocab_size >= tokens
        or lineage.imported is not None,
        f"model.vocab_size={config.vocab_size} is below the {tokens} tokens there are",
    )
    return dataclasses.replace(config, vocab_size=config.vocab_size or tokens)


def all_params(model: nnx.Module) -> PyTree:
    """Returns every parameter of a model, as arrays."""
    return nnx.as_pure(nnx.state(model))
