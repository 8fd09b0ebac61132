"""PyTorch does the same work as smf_jax."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from smf_jax.bench import lookup, steps
from smf_jax.config import ComputeConfig
from smf_jax.kernels.product_key import product_key_top_k
from tests.bench.test_bench import CONFIG
from tests.torch_models import require_torch

require_torch()

import torch  # noqa: E402

from smf_jax import torch_baseline  # noqa: E402
from smf_jax.bench import torch_cases  # noqa: E402


def test_both_rank_the_same_slots():
    query, keys = lookup.draw_keys(CONFIG)

    arrays = map(jnp.asarray, (query, keys))
    want, _ = product_key_top_k(*arrays, 3)
    got, _ = torch_baseline.product_key_top_k(
        torch.as_tensor(query), torch.as_tensor(keys), 3
    )

    np.testing.assert_array_equal(got, want)


def test_a_sparse_gradient_writes_what_a_masked_one_does():
    batch, changes = steps.draw_batch(CONFIG), []
    frequency = torch.as_tensor(steps.draw_frequency(CONFIG.model.memory))
    for sparse in (False, True):
        torch.manual_seed(0)
        model = torch_cases.make_model(CONFIG.model)
        optimizer = torch_baseline.train_only_values(model, 1.0, sparse)
        before = model.model.memory_values[0].detach().clone()
        torch_baseline.smf_step(
            model, optimizer, batch, frequency, steps.DOCUMENTS, CONFIG.top_t
        )
        changes.append(model.model.memory_values[0].detach() - before)

    masked, sparse = changes
    assert 0 < (masked != 0).any(1).sum() <= CONFIG.top_t
    # Sums in another order
    torch.testing.assert_close(sparse, masked, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("activations", ["float32", "bfloat16"])
def test_a_step_can_be_repeated(sparse, activations):
    config = dataclasses.replace(CONFIG, compute=ComputeConfig(activations=activations))
    case = torch_cases.step_case(config, config.model, sparse)

    case.call()
    case.call()


def test_lookups_and_ranking_run():
    cases = torch_cases.lookup_cases(lookup.draw_inputs(CONFIG)).values()
    for case in (*cases, torch_cases.ranking_case(CONFIG)):
        case.call()
