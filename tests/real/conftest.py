"""A real model, read by this package and by `transformers`."""

import importlib.util
import os

import jax
import pytest

from tests.real.fetch import FILE

MISSING = [
    f"the package `{name}` is not installed"
    for name in ("gguf", "torch", "transformers")
    if importlib.util.find_spec(name) is None
]
if not FILE.is_file():
    MISSING.append(f"{FILE} is missing: run `make real`")


@pytest.fixture(scope="package")
def weights():
    """Returns the GGUF file; skips the tests (SMF_REQUIRE_REAL=1: fails) without it."""
    if MISSING:
        missing = pytest.fail if os.environ.get("SMF_REQUIRE_REAL") else pytest.skip
        missing("; ".join(MISSING))
    return FILE


@pytest.fixture(scope="package", autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="package")
def opened(weights):
    from smf_jax import hf

    return hf.open_source(weights)


@pytest.fixture(scope="package")
def model(opened):
    from smf_jax import hf

    return hf.import_model(opened)


@pytest.fixture(scope="package")
def tokenizer(opened, model):
    from smf_jax import hf

    return hf.read_tokenizer(opened, model.config.vocab_size)[0]


@pytest.fixture(scope="package")
def torch_model(weights):
    """Returns it in one thread: several would wait for those of other processes."""
    import torch
    from transformers import AutoModelForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    load = AutoModelForCausalLM.from_pretrained
    yield load(weights.parent, gguf_file=weights.name, dtype=torch.float32).eval()
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def torch_tokenizer(weights):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
