"""`peft` and `transformers` load what a LoRA run exports."""

import jax
import numpy as np
import pytest
from flax import nnx

from smf_jax import hf
from smf_jax.config import LoraConfig
from smf_jax.hf.save import ADAPTER
from smf_jax.model.lora import add_lora
from tests import tiny, torch_models
from tests.tiny import make_model, model_config

torch_models.require_torch()

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

# peft still uses the old name of something in transformers.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
LORA = LoraConfig(rank=3, alpha=5.0)
TOKENS = np.arange(10, dtype=np.int32).reshape(2, 5)
TOLERANCE = 2e-5


def test_an_adapter_gives_the_logits_of_our_lora(tmp_path, tokenizer):
    base = make_model(model_config(memory=None, qkv_bias=True))
    hf.export_model(base, tokenizer, tmp_path / "base")

    def make():
        model = make_model(base.config)
        add_lora(model, LORA, rngs=nnx.Rngs(0))
        return model

    taught = tiny.with_params(tiny.fill(make, seed=3), wrapped(tiny.named(base)))
    with jax.default_matmul_precision("highest"):
        want = np.asarray(tiny.call(taught, TOKENS)[0])
        hf.export_model(
            taught, tokenizer, tmp_path / "out", base_name=str(tmp_path / "base")
        )

    load = transformers.AutoModelForCausalLM.from_pretrained
    adapted = peft.PeftModel.from_pretrained(
        load(tmp_path / "base"), tmp_path / "out" / ADAPTER
    )
    by_base_name = peft.AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "out" / ADAPTER
    )
    merged = load(tmp_path / "out")
    with torch.no_grad():
        tokens = torch.from_numpy(TOKENS).long()
        for model in (adapted, by_base_name, merged):
            got = model.eval()(input_ids=tokens).logits.numpy()
            np.testing.assert_allclose(got, want, atol=TOLERANCE * np.abs(want).max())


def wrapped(params):
    """Returns parameters also by the names they have in a layer with LoRA."""
    result = {}
    for name, array in params.items():
        layer, _, leaf = name.rpartition("/")
        result |= {name: array, f"{layer}/base/{leaf}": array}
    return result
