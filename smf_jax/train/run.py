"""A run that is done: its model, ready to be asked, taught, or given a memory."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import PyTree
from rich.console import Console

from smf_jax import checkpoint
from smf_jax.config import (
    ComputeConfig,
    ConfigError,
    DataConfig,
    FinetuneConfig,
    MemoryConfig,
    MeshConfig,
    ModelConfig,
    RetrofitConfig,
    require,
)
from smf_jax.data.corpus import Corpus, load_corpus, no_corpus
from smf_jax.data.tokenizer import END, Tokenizer, load_tokenizer, tokenizer_hash
from smf_jax.model.build import abstract_model, assemble
from smf_jax.model.lora import add_lora
from smf_jax.model.transformer import Transformer
from smf_jax.names import named
from smf_jax.optim.methods import TRAINABLE
from smf_jax.sharding import Placement, make_placement, with_places
from smf_jax.train.record import (
    CONFIG,
    RETROFIT,
    TOKENIZER,
    Made,
    made_of,
    read_json,
    read_record,
)


class Run(NamedTuple):
    """A finished run, ready to be asked or taught."""

    run_dir: Path
    made: Made  # how its model came to be
    model: nnx.Module
    tokenizer: Tokenizer
    step: int
    corpus_hash: str | None  # of what it was trained on, or taught and asked
    model_hash: str  # SHA-256 of the names and digests of all its parameters

    @property
    def data(self) -> DataConfig:
        """What the model was trained on before it was taught, and is asked.

        Raises:
          ConfigError: It was imported, and none were named.
        """
        data = self.made.data
        require(
            data is not None,
            f"{self.run_dir} was imported without data: import it with --facts or "
            "--background, or retrofit it",
        )
        return data

    @property
    def memory(self) -> MemoryConfig:
        """The model's memory layers.

        Raises:
          ConfigError: It has none.
        """
        memory = self.model.config.memory
        require(
            memory is not None,
            f"{self.run_dir}: the model has no memory layers: retrofit it",
        )
        return memory


def is_finished(run_dir: str | Path) -> bool:
    """Returns whether a run did all its steps and saved the last one."""
    step = checkpoint.latest_step(Path(run_dir))
    return step is not None and step >= made_of(read_record(Path(run_dir))).steps


def load_run(
    run_dir: str | Path,
    step: int | None = None,
    placement: Placement | None = None,
    mesh: MeshConfig | None = None,
) -> Run:
    """Reads a finished run, or what it was after an earlier step that is kept.

    Without a placement it is placed as `placement_of` has it, on `mesh` if named.

    Raises:
      ConfigError: There is none, its parts do not belong together, or it cannot be
        placed so.
    """
    run_dir = Path(run_dir)
    require(run_dir.is_dir(), f"{run_dir}: no such run directory")
    record = read_record(run_dir)
    made = made_of(record)
    kept = checkpoint.steps(run_dir)
    require(len(kept) > 0, f"{run_dir} holds no checkpoint")
    if step is None:
        step, last = kept[-1], made.steps
        require(
            step >= last,
            f"{run_dir} was interrupted after step {step} of {last}: the command that "
            f"began it goes on with it (smf evaluate --step {step} asks it as it is)",
        )
    require(step in kept, f"{run_dir} holds no step {step}, only {kept}")
    # Before any of them is read as what it should be.
    wrong = checkpoint.run_file_problems(run_dir, checkpoint.read(run_dir, step))
    require(not wrong, "; ".join(wrong))
    end = END if made.imported is None else made.imported.end_token
    tokenizer = load_tokenizer(run_dir / TOKENIZER, end)
    require(
        tokenizer_hash(tokenizer) == record["tokenizer_hash"],
        f"{run_dir / TOKENIZER} is not the tokenizer of this model, which has hash "
        f"{record['tokenizer_hash']}",
    )
    placement = placement or placement_of(made, mesh)
    model = _load_model(run_dir, step, record, made, tokenizer, placement)
    model_hash = checkpoint.params_hash(all_params(model))
    corpus_hash = record["corpus_hash"]
    return Run(run_dir, made, model, tokenizer, step, corpus_hash, model_hash)


def require_fitting(seq_len: int, run: Run) -> None:
    """Raises `ConfigError` if a model was not made for texts of so many tokens."""
    longest = run.made.longest
    require(
        longest is None or seq_len <= longest,
        f"seq_len={seq_len} is above the {longest} tokens that the model of "
        f"{run.run_dir} was made for (max_position_embeddings)",
    )


def load_base(config: FinetuneConfig | RetrofitConfig, console: Console) -> Run:
    """Reads the finished run that is to be trained further, placed as for training.

    Raises:
      ConfigError: There is none, it was taught by lora, or it cannot be placed so.
    """
    run_dir = Path(config.base)
    require(run_dir.is_dir(), f"{run_dir}: no such run directory")
    memory = made_of(read_record(run_dir)).model.memory
    if isinstance(config, RetrofitConfig):
        memory = config.memory
    placement = make_placement(config.mesh, config.compute, memory)
    run = load_run(run_dir, placement=placement)
    own = run.made.own
    require(
        not isinstance(own, FinetuneConfig) or own.optim.method != "lora",
        f"{run_dir} was taught by lora, and what it added cannot be trained over: take "
        "the run it came from",
    )
    tell_unhealed(run, console)
    return run


def tell_unhealed(run: Run, console: Console) -> None:
    """Prints a warning if a run is a retrofit whose model has not healed.

    Raises:
      ConfigError: What it reported of itself is damaged.
    """
    if run.made.own is not run.made.retrofit or run.step < run.made.steps:
        return
    record = checkpoint.read(run.run_dir, run.step)
    damaged = checkpoint.output_problems(run.run_dir, record)
    require(not damaged, "; ".join(damaged))
    if not read_json(run.run_dir / RETROFIT)["healed"]:
        line = f"WARNING: {run.run_dir} has not healed (see its {RETROFIT})"
        console.print(line, style="bold red")


def placement_of(made: Made, mesh: MeshConfig | None = None) -> Placement:
    """Returns where a model that is only read is placed.

    That is on the mesh that is named; else as when it trained, if these devices can be
    arranged so; else whole on each of them. Its numbers are the same up to rounding.

    Raises:
      ConfigError: The mesh that is named cannot be, or does not suit the model.
    """
    imported = made.own is made.imported
    compute = ComputeConfig() if imported else made.own.compute
    if jax.default_backend() == "cpu":  # it may have trained where there are kernels
        compute = dataclasses.replace(compute, lookup="xla")
    if mesh is not None:
        return make_placement(mesh, compute, made.model.memory)
    try:
        return make_placement(made.mesh, compute, made.model.memory)
    except ConfigError:
        return make_placement(MeshConfig(), compute, made.model.memory)


def tell_placement(placement: Placement, console: Console) -> None:
    """Prints over which devices a run is spread, if there are several."""
    if jax.device_count() > 1:
        console.print(f"mesh: {placement}", highlight=False)


def _load_model(run_dir, step, record, made: Made, tokenizer, placement) -> Transformer:
    own, method = made.own, "full"
    if isinstance(own, FinetuneConfig | RetrofitConfig):
        method = own.optim.method
    if method == "full":
        model = abstract_model(model_config(made, tokenizer), placement)
    else:  # a checkpoint holds what trained; the rest is the base's
        base = load_run(find_base(run_dir, own.base), placement=placement)
        require(
            base.model_hash == record["base_hash"],
            f"{run_dir} taught model {record['base_hash']}, but {base.run_dir} is "
            f"{base.model_hash}: what it was taught fits no other",
        )
        model = base.model
        if method == "lora":
            add_lora(model, own.optim.lora, rngs=nnx.Rngs(own.seed))
        elif own is made.retrofit:
            fresh = abstract_model(model_config(made, tokenizer), placement)
            part = nnx.state(fresh, TRAINABLE[method])
            loaded = _load(run_dir, step, part, placement)
            return assemble(fresh, named(all_params(model)) | named(loaded))
    graph, trained, rest = nnx.split(model, TRAINABLE[method], ...)
    return nnx.merge(graph, _load(run_dir, step, trained, placement), rest)


def _load(run_dir: Path, step: int, trained: PyTree, placement: Placement) -> PyTree:
    abstract = jax.eval_shape(lambda: nnx.as_pure(trained))
    for leaf in jax.tree.leaves(trained):
        if isinstance(leaf, jax.Array):  # of a base: not twice on the devices
            leaf.delete()
    abstract = with_places(abstract, placement.of_params(abstract))
    return checkpoint.load(run_dir, step, {"params": abstract})[0]["params"]


def corpus_of(run: Run) -> Corpus:
    """Returns what a run was trained on, which is nothing if it came without data.

    Raises:
      ConfigError: A file is gone, or is not what it was then.
    """
    if run.made.data is None:
        return no_corpus()
    corpus = load_corpus(run.made.data)
    require(
        run.made.finetune is not None or run.corpus_hash == corpus.hash,
        f"the facts or texts of {run.run_dir} are not those it was trained on "
        f"(hash {run.corpus_hash} then, {corpus.hash} now)",
    )
    return corpus


def find_base(run_dir: Path, base: str) -> Path:
    """Returns where the base of a run lies.

    Raises:
      ConfigError: Neither where it was, nor beside the run, as runs moved together.
    """
    recorded = Path(base)
    places = (recorded, run_dir.parent / recorded.name)
    for path in places:
        if (path / CONFIG).is_file():
            return path
    raise ConfigError(
        f"{run_dir} was made from {recorded}, which is not there"
        + ("" if places[0] == places[1] else f", nor at {places[1]}")
        + ": put it back beside it"
    )


def model_config(made: Made, tokenizer: Tokenizer) -> ModelConfig:
    """Returns what a model is made of, as wide as its vocabulary needs.

    Raises:
      ConfigError: The configured vocabulary cannot hold the tokenizer's.
    """
    tokens, config = tokenizer.num_tokens, made.model
    require(
        config.vocab_size == 0 or config.vocab_size >= tokens,
        f"model.vocab_size={config.vocab_size} is below the {tokens} tokens there are",
    )
    return dataclasses.replace(config, vocab_size=config.vocab_size or tokens)


def all_params(model: nnx.Module) -> PyTree:
    """Returns every parameter of a model, as arrays."""
    return nnx.as_pure(nnx.state(model))
