"""A memory layer in a Flax NNX model of your own, taught new facts by only_rows.

A fact is three numbers: the object of a subject and a relation. The model learns the
old facts by Adam on all parameters. Then document frequencies are counted on them, and
new facts are taught by SGD on the few rows of the table that TF-IDF selects.

    python examples/own_model.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import smf_jax

SUBJECTS, RELATIONS, OBJECTS, DIM = 300, 4, 50, 64
MEMORY = smf_jax.MemoryConfig(
    layers=(0,), num_keys=128, num_heads=4, top_k=8, key_dim=32, value_dim=64
)


class Recall(nnx.Module):
    """Completes a subject and a relation by an object."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.subject = nnx.Embed(SUBJECTS, DIM, rngs=rngs)
        self.relation = nnx.Embed(RELATIONS, DIM, rngs=rngs)
        self.mix = nnx.Linear(2 * DIM, DIM, rngs=rngs)
        self.memory = smf_jax.MemoryLayer(MEMORY, DIM, rngs=rngs)
        self.values = smf_jax.init_values(MEMORY, rngs=rngs)
        self.head = nnx.Linear(DIM, OBJECTS, rngs=rngs)

    def __call__(self, facts: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns logits [batch, objects], and the slots each fact reads."""
        subject, relation = self.subject(facts[:, 0]), self.relation(facts[:, 1])
        x = nnx.relu(self.mix(jnp.concatenate([subject, relation], -1)))
        out, reads = self.memory(x[:, None], self.values[...])
        return self.head(x + out[:, 0]), reads.slots[:, 0]


def loss_fn(model: Recall, facts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean loss in nats, and the slots that were read."""
    logits, slots = model(facts)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, facts[:, 2])
    return losses.mean(), slots


def pretrain(model: Recall, facts: np.ndarray, steps: int) -> None:
    """Trains all parameters of the model on facts."""
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch):
        grads, _ = nnx.grad(loss_fn, has_aux=True)(model, batch)
        optimizer.update(model, grads)

    rng = np.random.default_rng(0)
    for _ in range(steps):
        step(model, optimizer, rng.choice(facts, 256))


@nnx.jit
def count(model: Recall, facts: np.ndarray) -> jax.Array:
    """Returns how often some facts read each slot."""
    _, slots = model(facts)
    return smf_jax.count_reads(slots, jnp.ones(len(facts), bool), MEMORY.num_slots)


def teach(
    model: Recall, facts: np.ndarray, background: smf_jax.Background, steps: int
) -> None:
    """Teaches facts, and changes `top_t` rows of the table a step."""
    tx = smf_jax.only_rows(optax.sgd(1.0))
    graph, values, rest = nnx.split(model, smf_jax.MemoryValues, ...)
    opt_state = tx.init(values)

    @jax.jit
    def step(values, opt_state, batch):
        def of_values(values):
            return loss_fn(nnx.merge(graph, values, rest), batch)

        grads, slots = jax.grad(of_values, has_aux=True)(values)
        is_fact = jnp.ones(len(batch), bool)
        counts = smf_jax.count_reads(slots, is_fact, MEMORY.num_slots)
        (frequency,), documents = background
        scores = smf_jax.tfidf(counts, frequency, documents)
        selected = smf_jax.top_slots(scores, top_t=20)
        updates, opt_state = tx.update(grads, opt_state, values, slots=selected)
        return optax.apply_updates(values, updates), opt_state

    rng = np.random.default_rng(1)
    for _ in range(steps):
        values, opt_state = step(values, opt_state, rng.choice(facts, 8))
    nnx.update(model, values)


@nnx.jit
def accuracy(model: Recall, facts: np.ndarray) -> jax.Array:
    """Returns the share of facts that the model completes."""
    logits, _ = model(facts)
    return (logits.argmax(-1) == facts[:, 2]).mean()


def main() -> dict[str, float]:
    """Pretrains, counts, teaches, and returns the accuracies."""
    rng = np.random.default_rng(0)
    pairs = np.stack(np.divmod(np.arange(SUBJECTS * RELATIONS), RELATIONS), -1)
    objects = rng.integers(0, OBJECTS, (len(pairs), 1))
    facts = rng.permutation(np.concatenate([pairs, objects], -1)).astype(np.int32)
    new, old = facts[:40], facts[40:]

    model = Recall(rngs=nnx.Rngs(0))
    pretrain(model, old, steps=300)
    before = accuracy(model, old)
    documents = np.array_split(old, 40)
    read = sum((count(model, document) > 0).astype(int) for document in documents)
    background = smf_jax.Background(read[None], len(documents))
    teach(model, new, background, steps=80)
    return {
        "new facts": float(accuracy(model, new)),
        "old facts before": float(before),
        "old facts after": float(accuracy(model, old)),
    }


if __name__ == "__main__":
    for name, share in main().items():
        print(f"{name:16} {share:.3f}")
