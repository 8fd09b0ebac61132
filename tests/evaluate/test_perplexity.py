import numpy as np
import pytest

from smf_jax.evaluate.perplexity import mean_loss
from tests.data.rows import rows_of
from tests.tiny import call, make_batch, make_model, model_config

BATCH = make_batch(lengths=(8, 3, 6, 5, 9))


def by_hand(model):
    """Returns the mean over all weighted targets, whatever their rows."""
    logits, _ = call(model, BATCH.tokens)
    total = 0.0
    for row, column in np.argwhere(BATCH.weights > 0):
        scores = np.float64(logits[row, column])
        total += np.log(np.exp(scores).sum()) - scores[BATCH.targets[row, column]]
    return total / BATCH.weights.sum()


@pytest.mark.parametrize("batch_size", [2, 7])
def test_the_loss_is_the_mean_over_targets_in_batches_of_any_size(batch_size):
    model = make_model(model_config())

    got = mean_loss(model, rows_of(BATCH), batch_size)

    assert got == pytest.approx(by_hand(model), rel=1e-5)  # float32 sums
