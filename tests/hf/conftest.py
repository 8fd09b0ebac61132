import pytest

from smf_jax import hf
from smf_jax.data.tokenizer import train_tokenizer
from tests.tiny import make_model, model_config


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(["a b c"], "word", 9)


@pytest.fixture(scope="session")
def exported(tmp_path_factory, tokenizer):
    """Returns the directory of an exported model without memory layers."""
    folder = tmp_path_factory.mktemp("hf") / "exported"
    hf.export_model(make_model(model_config(memory=None)), tokenizer, folder)
    return folder
