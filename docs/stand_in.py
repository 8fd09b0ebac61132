"""Writes a small random model and data, so that README's commands run as they stand.

my_model/ is a Llama of 12 layers as Hugging Face stores one; texts.jsonl, known.jsonl
and new.jsonl hold statements and questions of the synthetic world.

    python docs/stand_in.py DIRECTORY
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from flax import nnx

import smf_jax
from smf_jax.config import WorldConfig
from smf_jax.data.records import Fact
from smf_jax.data.tokenizer import train_tokenizer
from smf_jax.data.world import make_world


def main(directory: Path) -> None:
    """Writes the model and the data."""
    world = make_world(WorldConfig(known_people=20, new_people=5))
    texts = [text for fact in world.known for text in fact.statements]
    questions = [fact.question for fact in world.known + world.new]
    tokenizer = train_tokenizer(texts + questions, "bpe", 512)
    shape = {"dim": 32, "num_layers": 12, "hidden_dim": 64}
    config = smf_jax.ModelConfig(vocab_size=tokenizer.num_tokens, memory=None, **shape)
    model = smf_jax.Transformer(config, rngs=nnx.Rngs(0))
    smf_jax.hf.export_model(model, tokenizer, directory / "my_model")
    _write(directory / "texts.jsonl", ({"text": text} for text in texts))
    _write(directory / "known.jsonl", map(_row, world.known))
    _write(directory / "new.jsonl", map(_row, world.new))


def _row(fact: Fact) -> dict:
    return {"id": fact.id, "question": fact.question, "answers": fact.answers}


def _write(path: Path, rows: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
