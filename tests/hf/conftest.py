import pytest

from smf_jax import hf
from smf_jax.data.tokenizer import train_tokenizer
from tests.tiny import make_model, model_config

# What a clone holds in place of a large file until `git lfs pull`.
POINTER = f"""version https://git-lfs.github.com/spec/v1
oid sha256:{0:064x}
size 12345
"""


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(["a b c"], "word", 9)


@pytest.fixture(scope="session")
def exported(tmp_path_factory, tokenizer):
    """Returns the directory of an exported model without memory layers."""
    folder = tmp_path_factory.mktemp("hf") / "exported"
    hf.export_model(make_model(model_config(memory=None)), tokenizer, folder)
    return folder
