import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smf_jax.config import ConfigError, LoraConfig
from smf_jax.model.lora import LoRALinear, LoRAParam, add_lora, merge_lora
from smf_jax.sharding import ONE_DEVICE
from tests.tiny import (
    VOCAB,
    bits,
    call,
    fill,
    make_model,
    memory_config,
    model_config,
    named,
    with_params,
)

QKVO = ("query", "key", "value", "out")
TEXT = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (2, 9)), jnp.int32)


def with_lora(model, **config):
    add_lora(model, LoraConfig(**{"rank": 3} | config), rngs=nnx.Rngs(1))
    return model


def test_fresh_lora_changes_no_bit_and_trained_lora_does():
    config = model_config(memory=None)
    want, _ = call(make_model(config), TEXT)
    model = with_lora(make_model(config), targets="blocks/0/attention/.*")
    ups = {name: leaf + 1 for name, leaf in named(model).items() if "/up" in name}

    got, _ = call(model, TEXT)
    trained, _ = call(with_params(model, ups), TEXT)

    np.testing.assert_array_equal(bits(got), bits(want))
    assert (bits(trained) != bits(want)).any()


def test_lora_adds_a_scaled_product_of_two_factors():
    rng = np.random.default_rng(0)
    kernel, down, up, bias, x = (
        rng.normal(size=shape) for shape in [(4, 5), (4, 2), (2, 5), (5,), (3, 4)]
    )
    want = x @ (kernel + 6.0 / 2 * down @ up) + bias

    def make():
        rngs = nnx.Rngs(0)
        base = nnx.Linear(4, 5, rngs=rngs)
        return LoRALinear(base, LoraConfig(rank=2, alpha=6.0), rngs=rngs)

    layer = fill(make)
    params = {"base/kernel": kernel, "base/bias": bias, "down": down, "up": up}
    params = {name: jnp.float32(value) for name, value in params.items()}

    got = call(with_params(layer, params), jnp.float32(x))

    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)  # float32, sums of ten


def lora_names(model):
    paths = nnx.to_flat_state(nnx.state(model, LoRAParam)).paths
    return {"/".join(map(str, path)) for path in paths}


@pytest.mark.parametrize(
    ("targets", "layers"),
    [  # no layer is called `val`
        ("blocks/./attention/(key|val)", [f"blocks/{n}/attention/key" for n in (0, 1)]),
        ("head", ["head"]),
    ],
)
def test_lora_wraps_the_layers_that_match_and_no_others(targets, layers):
    model = with_lora(make_model(model_config(tie_embeddings=False)), targets=targets)

    assert lora_names(model) == {
        f"{n}/{part}" for n in layers for part in ("down", "up")
    }


def test_lora_wraps_attention_and_feed_forward_by_default():
    model = with_lora(make_model(model_config()))

    wrapped = {name.rsplit("/", 1)[0] for name in lora_names(model)}

    assert wrapped == {
        f"blocks/{layer}/{part}"
        for layer, part in [
            *((n, f"attention/{part}") for n in (0, 1) for part in QKVO),
            *((0, f"feed_forward/{part}") for part in ("gate", "up", "down")),
        ]
    }


def test_every_factor_has_a_sharding_rule():
    memory = memory_config(relevance_gate=True)
    config = model_config(tie_embeddings=False, qkv_bias=True, memory=memory)
    model = with_lora(make_model(config), targets=".*")

    params = nnx.as_pure(nnx.state(model))

    assert {"head/up", "blocks/1/memory/relevance/down"} < set(named(model))
    assert len(jax.tree.leaves(ONE_DEVICE.param_shardings(params))) == len(named(model))


@pytest.mark.parametrize("targets", ["nothing", "attention"])
def test_targets_that_match_no_whole_name_are_refused_with_all_names(targets):
    match = rf"lora\.targets='{targets}' .* blocks/0/attention/query, "
    with pytest.raises(ConfigError, match=match):
        with_lora(make_model(model_config()), targets=targets)


def test_merged_lora_says_what_it_said_apart():
    model = with_lora(make_model(model_config()))
    ups = {name: leaf + 0.1 for name, leaf in named(model).items() if "/up" in name}
    model = with_params(model, ups)
    want, _ = call(model, TEXT)

    merge_lora(model)

    got, _ = call(model, TEXT)
    assert named(model).keys() == named(make_model(model_config())).keys()
    # The kernel and its addition are rounded together, float32.
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
