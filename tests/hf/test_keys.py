"""Keys of `transformers` on which no logit depends are set aside."""

import pytest

from smf_jax.hf.config import read_config
from tests import torch_models
from tests.hf.test_config import FAMILIES

torch_models.require_torch()

import transformers  # noqa: E402

# These name the model, and are refused where they name another.
KEPT = {"architectures", "model_type", "tie_word_embeddings"}


@pytest.mark.parametrize(
    "kind", [transformers.GenerationConfig, transformers.PretrainedConfig]
)
@pytest.mark.parametrize("odd", [7, True, "odd", [3], {"odd": 1}], ids=repr)
def test_settings_of_every_model_and_of_generation_may_have_any_value(kind, odd):
    settings = dict.fromkeys(kind().to_dict().keys() - KEPT, odd)

    for config in FAMILIES:
        assert read_config(config | settings) == read_config(config)
