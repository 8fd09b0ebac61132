"""The verb that teaches a pretrained model facts, by one command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from smf_jax.cli.options import parse
from smf_jax.config import MeshConfig, TeachConfig


def teach(arguments: Sequence[str], console: Console) -> None:
    """Teaches a model the facts that it does not know."""

    def options(
        model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")],
        /,
        facts: str,
        patterns: str | None = None,
        keep: tuple[str, ...] = (),
        background: str | None = None,
        out: str = "runs/taught",
        method: Literal["smf", "lora", "full"] = "smf",
        forget_at_most: float | None = None,
        prompt: Literal["auto", "plain", "chat"] = "auto",
        epochs: int = 10,
        rate: float | None = None,
        seed: int = 0,
        mesh: MeshConfig = MeshConfig(),  # noqa: B008 - frozen
    ):
        """Teach MODEL the facts of a file that it does not know, and say what is lost.

        Imports it, asks every fact, gives it a memory, teaches, and asks again.

        The same command continues after an interruption, and does nothing twice.

        Example: smf teach HuggingFaceTB/SmolLM2-135M --facts facts.jsonl

        Args:
          model: repository OWNER/NAME, directory, FILE.gguf, or run
          facts: JSONL(.gz) of facts, or tfds:NAME
          patterns: JSONL(.gz) of patterns by relation, for wordings of `facts`
          keep: files of facts of which those that the model knows are to be kept
          background: JSONL(.gz) of texts, or tfds:NAME; None: the model writes some
          out: output directory
          method: what is trained: rows of a memory, adapters, or every parameter
          forget_at_most: share of the kept facts that may be forgotten; None: any
          prompt: how questions are put; auto: chat if the model was trained to chat
          epochs: times that every fact is taught
          rate: learning rate; None: 0.7, of lora 1e-3, of full 1e-4
          seed: of the order of facts, of samples, and of new parameters
        """
        return TeachConfig(
            model=model,
            facts=facts,
            patterns=patterns,
            keep=keep,
            background=background,
            out=out,
            method=method,
            forget_at_most=forget_at_most,
            prompt=prompt,
            epochs=epochs,
            rate=rate,
            seed=seed,
            mesh=mesh,
        )

    config = parse(options, "teach", arguments)
    from smf_jax import report
    from smf_jax.verbs.teach import teach

    teach(config, console)
    console.print(f"report: {report.write_teach(Path(config.out))}")
