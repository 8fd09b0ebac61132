"""An imported model taught by the SMF step in a training loop of your own.

Without an argument it makes, exports and imports a small random model with a memory
layer, so that it runs in seconds; with one, it imports that folder: a Hugging Face
model to which `smf retrofit` gave memory layers and `smf export-hf` wrote.

    python examples/own_loop.py [MODEL_DIRECTORY]
"""

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import smf_jax
from smf_jax.data.tokenizer import train_tokenizer

SEQ_LEN, STEPS, DOCUMENTS = 16, 30, 20


def make_directory(folder: Path) -> Path:
    """Returns a folder with a small random model, as a stand-in for yours."""
    memory = smf_jax.MemoryConfig(layers=(1,), num_keys=64, value_dim=32)
    shape = {"vocab_size": 64, "dim": 32, "num_layers": 2, "hidden_dim": 64}
    config = smf_jax.ModelConfig(**shape, memory=memory)
    model = smf_jax.Transformer(config, rngs=nnx.Rngs(0))
    words = " ".join(map(str, range(60)))
    tokenizer = train_tokenizer([words], "word", config.vocab_size)
    smf_jax.hf.export_model(model, tokenizer, folder / "model")
    return folder / "model"


def make_batch(texts: np.ndarray) -> smf_jax.Batch:
    """Returns a batch of texts [batch, seq + 1] that predicts every next token."""
    rows = np.ones((len(texts), SEQ_LEN), np.int32)
    return smf_jax.Batch(
        tokens=texts[:, :-1],
        targets=texts[:, 1:],
        weights=rows.astype(np.float32),
        positions=np.cumsum(rows, 1, dtype=np.int32) - 1,
        segments=rows,  # one text a row; 0 would be padding
        records=0 * rows,
    )


def main(directory: Path) -> tuple[list[float], int]:
    """Teaches one batch of texts; returns the loss of each step, and rows changed."""
    model = smf_jax.hf.import_model(directory)
    config, before = model.config, np.asarray(model.values[0][...])
    rng = np.random.default_rng(0)

    def texts(batch_size):
        shape = (batch_size, SEQ_LEN + 1)
        return rng.integers(0, config.vocab_size, shape, np.int32)

    # Which slots do other texts read? A document is one batch of them.
    graph, params = nnx.split(model)
    count = smf_jax.make_read_counter(graph, config.memory)
    documents = (make_batch(texts(2)) for _ in range(DOCUMENTS))
    read = sum((count((params,), batch) > 0).astype(int) for batch in documents)
    background = smf_jax.Background(read, DOCUMENTS)

    optim = smf_jax.OptimConfig(
        method="smf", optimizer="sgd", learning_rate=3000.0, top_t=50
    )
    method = smf_jax.make_method(optim, STEPS)
    graph, state, frozen = smf_jax.init_state(model, method)
    step = smf_jax.make_step(graph, config.memory, method)
    batch, losses = make_batch(texts(4)), []
    for _ in range(STEPS):
        state, metrics = step(state, frozen, background, batch)
        losses.append(float(metrics["loss"]))
    (after,) = jax.tree.leaves(state.trainable)
    return losses, int((np.asarray(after) != before).any(-1).sum())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        named = Path(sys.argv[1]) if sys.argv[1:] else make_directory(Path(folder))
        losses, changed = main(named)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; {changed} rows changed")
