import jax
import numpy as np
import pytest
from flax import nnx

from smf_jax.evaluate.perplexity import mean_loss
from tests.tiny import call, make_batch, make_model, model_config

BATCH = make_batch(lengths=(8, 3, 6, 5, 9))
ROWS = [jax.tree.map(lambda leaf, n=n: leaf[n], BATCH) for n in range(5)]


def by_hand(model):
    """Returns the mean over all weighted targets, whatever row they stand in."""
    logits, _ = call(model, *(np_to(part) for part in BATCH[:1]))
    total = 0.0
    for row, place in np.argwhere(BATCH.weights > 0):
        scores = np.float64(logits[row, place])
        total += np.log(np.exp(scores).sum()) - scores[BATCH.targets[row, place]]
    return total / BATCH.weights.sum()


def np_to(array):
    return jax.numpy.asarray(array)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7])
def test_it_is_the_mean_over_targets_however_they_are_batched(batch_size):
    model = make_model(model_config())
    graph, params = nnx.split(model)

    got = mean_loss(graph, (params,), ROWS, batch_size)

    assert got == pytest.approx(by_hand(model), rel=1e-5)  # float32 sums
