"""The verbs that bring models in, give them a memory, and take them out."""

import sys
from collections.abc import Sequence
from typing import Literal

import tyro
from rich.console import Console

from smf_jax.cli.files import load_config
from smf_jax.config import DataConfig, RetrofitConfig


def import_hf(arguments: Sequence[str], console: Console) -> None:
    """Makes a run of a Hugging Face model."""

    def options(
        source: tyro.conf.Positional[str],
        run: tyro.conf.Positional[str],
        /,
        revision: str | None = None,
        ignore: tuple[str, ...] = (),
        facts: str | None = None,
        background: str | None = None,
        seq_len: int = 64,
    ):
        """Make a run of a Hugging Face model: Llama, Mistral, Qwen2, Qwen3, SmolLM.

        Reads safetensors only. HF_HUB_OFFLINE=1 takes what was downloaded before.

        Example: smf import-hf HuggingFaceTB/SmolLM2-135M runs/smollm

        Args:
          source: A directory, or a repository OWNER/NAME.
          run: The run directory that is written.
          revision: Branch, tag or commit of the repository.
          ignore: Keys of its config.json that are set aside, on your word.
          facts: JSONL(.gz) of facts that it is asked and taught as it is.
          background: JSONL(.gz) of texts beside them.
          seq_len: Tokens of a row of them.
        """
        return source, run, revision, ignore, facts, background, seq_len

    source, run, revision, ignore, facts, background, seq_len = tyro.cli(
        options, args=list(arguments), prog="smf import-hf"
    )
    data = None
    if facts is not None or background is not None:
        data = DataConfig(facts=facts, background=background, seq_len=seq_len)
    from smf_jax.runs.convert import import_run

    path = import_run(source, run, revision, ignore, data, console)
    console.print(f"run: {path}")


def export_hf(arguments: Sequence[str], console: Console) -> None:
    """Writes a run's model for Hugging Face."""

    def options(
        run: tyro.conf.Positional[str],
        directory: tyro.conf.Positional[str],
        /,
        patch: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ):
        """Write the model of RUN as safetensors, with its config and tokenizer.

        What was written is read again, and must give the same logits. With memory
        layers, smf_jax.torch_baseline loads it; without, transformers does. A LoRA run
        is merged, and its adapter for PEFT lies in DIRECTORY/adapter.

        Example: smf export-hf runs/smf_world exported

        Args:
          run: The run directory.
          directory: Where the model is written; must not exist, or be empty.
          patch: A patch file that is applied to the memory first.
          dtype: Of the parameters as they are written.
        """
        return run, directory, patch, dtype

    run, directory, patch, dtype = tyro.cli(
        options, args=list(arguments), prog="smf export-hf"
    )
    from smf_jax.runs.convert import export_run

    export_run(run, directory, patch, dtype, console)


def retrofit(arguments: Sequence[str], console: Console) -> int:
    """Gives a run's model a memory and heals it."""
    config, resume = load_config(RetrofitConfig, "retrofit", arguments)
    from smf_jax import report
    from smf_jax.verbs.retrofit import retrofit

    done = retrofit(config, console, resume)
    console.print(f"figure: {report.draw_retrofit(done.run_dir)}")
    if not done.healed:
        print(f"smf retrofit: {done.verdict}: train another longer", file=sys.stderr)
        return 1
    console.print(done.verdict, highlight=False)
    return 0
