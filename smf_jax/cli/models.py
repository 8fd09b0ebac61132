"""The verbs that import, retrofit and export models."""

import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro
from rich.console import Console

from smf_jax.cli.files import RunDir, load_config
from smf_jax.cli.options import parse
from smf_jax.config import DataConfig, RetrofitConfig


def import_hf(arguments: Sequence[str], console: Console) -> None:
    """Imports a Hugging Face model as a run."""

    def options(
        source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")],
        run: RunDir,
        /,
        facts: str | None = None,
        patterns: str | None = None,
        background: str | None = None,
        fields: str | None = None,
        new_fraction: float = 0.5,
        seq_len: int = 64,
        revision: str | None = None,
        ignore: tuple[str, ...] = (),
        bos: Literal["auto", "yes", "no"] = "auto",
    ):
        """Import a Llama, Mistral, Qwen2, Qwen3 or SmolLM model as RUN.

        Only safetensors and GGUF are read.

        HF_HUB_OFFLINE=1 uses earlier downloads only.

        Example: smf import-hf HuggingFaceTB/SmolLM2-135M runs/smollm

        Args:
          source: directory, file FILE.gguf, or repository OWNER/NAME
          facts: JSONL(.gz) of facts to evaluate and teach, or tfds:NAME
          patterns: JSONL(.gz) of patterns by relation, for wordings of `facts`
          background: JSONL(.gz) of background texts, or tfds:NAME
          fields: of tfds:NAME, such as question=FIELD,answers=FIELD
          new_fraction: share of `facts` to teach; 0: all are to be kept
          seq_len: tokens per packed row of facts and texts
          revision: branch, tag or commit of the repository
          ignore: unsupported keys of config.json to ignore
          bos: whether a text starts with a BOS token; auto: as tokenizer.json says
        """
        data = None
        if facts is not None or background is not None:
            data = DataConfig(
                facts=facts,
                patterns=patterns,
                background=background,
                fields=fields,
                new_fraction=new_fraction,
                seq_len=seq_len,
            )
        return source, run, revision, ignore, bos, data

    source, run, *settings = parse(options, "import-hf", arguments)
    from smf_jax.runs.convert import import_run

    path = import_run(source, run, *settings, console)
    console.print(f"run: {path}")


def export_hf(arguments: Sequence[str], console: Console) -> None:
    """Exports a run's model for Hugging Face."""
    directory = tyro.conf.arg(metavar="DIRECTORY")

    def options(
        run: RunDir,
        directory: Annotated[tyro.conf.Positional[str], directory],
        /,
        patch: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ):
        """Export the model of RUN as safetensors, with its config and tokenizer.

        The export is read back, and must give the same logits.

        transformers loads it, or smf_jax.torch_baseline if it has memory layers.

        LoRA is merged, and its PEFT adapter is written to DIRECTORY/adapter.

        Example: smf export-hf runs/smf_world exported

        Args:
          directory: output directory; must be empty or not exist
          patch: patch file to apply to the memory tables first
          dtype: type of the exported parameters
        """
        return run, directory, patch, dtype

    run, directory, patch, dtype = parse(options, "export-hf", arguments)
    from smf_jax.runs.convert import export_run

    export_run(run, directory, patch, dtype, console)


def retrofit(arguments: Sequence[str], console: Console) -> int:
    """Adds memory layers to a run's model, and trains them until it has healed."""
    config, resume = load_config(RetrofitConfig, "retrofit", arguments)
    from smf_jax import report
    from smf_jax.verbs.retrofit import retrofit

    result = retrofit(config, console, resume)
    if config.steps > 0:
        console.print(f"figure: {report.draw_retrofit(result.run_dir)}")
    if not result.healed:
        print(f"smf retrofit: {result.verdict}: train more steps", file=sys.stderr)
        return 1
    console.print(result.verdict)
    return 0
