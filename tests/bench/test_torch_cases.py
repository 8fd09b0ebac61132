"""PyTorch does the same work as smf_jax."""

import dataclasses
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from smf_jax.bench import lookup, pretrained, run, steps, timing
from smf_jax.bench.config import BenchConfig
from smf_jax.config import ComputeConfig
from smf_jax.kernels.product_key import product_key_top_k
from tests.bench.test_bench import CONFIG, MODEL
from tests.torch_models import require_torch, save

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


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("method", ["pretraining", "full", "lora"])
def test_a_dense_step_can_be_repeated(method, autocast):
    case = torch_cases.dense_step_case(CONFIG, CONFIG.model, method, autocast)

    case.call()
    case.call()


def test_lora_trains_its_factors_alone(monkeypatch):
    trained = []
    monkeypatch.setattr(torch.optim, "SGD", lambda leaves, lr: trained.extend(leaves))

    torch_cases.dense_step_case(CONFIG, CONFIG.model, "lora", False)

    assert len(trained) == 2 * 4  # the layer has a memory in place of a feed-forward
    assert all(steps.LORA_RANK in leaf.shape for leaf in trained)


def test_a_pretrained_model_is_timed_beside_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "MIN_SECONDS", 0)
    monkeypatch.setattr(timing, "PAUSE", 0)
    small = pretrained.Work("small", 2, 4, 3, 6)
    monkeypatch.setattr(pretrained, "WORKS", (small,))
    model = torch_cases.make_model(dataclasses.replace(MODEL, memory=None))
    out, source = str(tmp_path / "bench"), str(save(model, tmp_path / "model"))
    config = BenchConfig(out=out, source=source, parts=("pretrained",), repeats=1)

    run.run(config, Console(file=io.StringIO(), width=80))

    written = json.loads((tmp_path / "bench/bench.json").read_text())
    (group,) = written["pretrained"]["groups"]
    assert list(group) == [
        "small, smf_jax, float32 products",
        "small, smf_jax, bfloat16 products",
        "small, transformers, float32",
        "small, transformers, bfloat16",
    ]


def test_lookups_and_ranking_run():
    cases = torch_cases.lookup_cases(lookup.draw_inputs(CONFIG)).values()
    for case in (*cases, torch_cases.ranking_case(CONFIG)):
        case.call()
