import numpy as np
import pytest

from smf_jax.evaluate.perplexity import text_loss
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

    got = text_loss(model, rows_of(BATCH), batch_size)

    assert got.loss == pytest.approx(by_hand(model), rel=1e-5)  # float32 sums
    assert got.n == len(BATCH.tokens)


def test_a_change_has_a_narrower_interval_than_the_losses():
    before = text_loss(make_model(model_config()), rows_of(BATCH), 4)
    pairs = zip(before.sums, before.weights, strict=True)
    after = before._replace(sums=[sum + 0.01 * weight for sum, weight in pairs])

    change, (low, high) = before.change_to(after)

    assert change == pytest.approx(0.01, abs=1e-6)
    assert high - low < 1e-3 < before.loss_95[1] - before.loss_95[0]
