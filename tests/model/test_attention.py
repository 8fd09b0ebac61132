import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smf_jax.config import RopeConfig, RopeScalingConfig
from smf_jax.model.attention import (
    Attention,
    make_rotation,
    rope_frequencies,
    rotate,
)
from tests.reference import attention as reference
from tests.tiny import call, make_model, model_config

BATCH, SEQ, LENGTH = 2, 5, 200
LINEAR = RopeScalingConfig(type="linear", factor=4.0)
YARN = RopeScalingConfig(type="yarn", factor=4.0, original_max_position=1024)
SCALINGS = {
    "plain": None,
    "linear": LINEAR,
    "llama 3.1": RopeScalingConfig(original_max_position=64),
    "yarn": YARN,
    "yarn, exact limits": dataclasses.replace(YARN, truncate=False),
    "yarn, a step": dataclasses.replace(
        YARN, beta_fast=3.0, beta_slow=3.0, truncate=False
    ),
    "yarn, first pairs": dataclasses.replace(YARN, original_max_position=64),
    "yarn, last pairs": dataclasses.replace(
        YARN, original_max_position=10**9, beta_fast=1e6
    ),
}


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def rotation(positions, scaling=None):
    rope = RopeConfig(theta=100.0, scaling=scaling)
    return make_rotation(positions, model_config(head_dim=8, rope=rope), LENGTH)


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_rotary_frequencies_are_those_of_the_formula(theta, scaling):
    want = reference.frequencies(16, theta, scaling)

    got = rope_frequencies(16, theta, scaling)

    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-6)  # rounded to float32


def test_stretching_keeps_short_waves_and_lengthens_long_ones():
    scaling = RopeScalingConfig(factor=8.0, original_max_position=64)
    plain = rope_frequencies(16, 10_000.0, None)

    ratio = rope_frequencies(16, 10_000.0, scaling) / plain

    # Wavelengths 6.3, 20, 63, 199, ...: below 16 they stay, above 64 they grow by 8.
    assert ratio[0] == 1
    assert 1 / 8 < ratio[1] < 1
    np.testing.assert_allclose(ratio[3:], 1 / 8, rtol=1e-6)  # float32


def test_linear_scaling_lengthens_all_waves():
    plain = rope_frequencies(16, 10_000.0, None)

    ratio = rope_frequencies(16, 10_000.0, LINEAR) / plain

    np.testing.assert_allclose(ratio, 1 / 4, rtol=1e-6)  # float32


def test_yarn_keeps_fast_pairs_and_scales_slow_ones():
    plain = rope_frequencies(16, 10_000.0, None)

    ratio = rope_frequencies(16, 10_000.0, YARN) / plain

    # Turns in 1024 positions: 163, 52, 16, 5.2, 1.6, 0.5, ...; limits are 32 and 1.
    np.testing.assert_array_equal(ratio[:2], 1)
    np.testing.assert_allclose(ratio[2:5], [13 / 16, 10 / 16, 7 / 16], rtol=1e-6)
    np.testing.assert_allclose(ratio[5:], 1 / 4, rtol=1e-6)  # float32


@pytest.mark.parametrize(
    ("scaling", "amplitude"),
    [
        (LINEAR, 1.0),
        (RopeScalingConfig(), 1.0),
        (YARN, 1.1386294),  # 0.1 ln 4 + 1
        (dataclasses.replace(YARN, factor=0.5), 1.0),
        (dataclasses.replace(YARN, attention_factor=0.7), 0.7),
    ],
)
def test_only_yarn_multiplies_what_it_rotates(scaling, amplitude):
    assert scaling.amplitude == pytest.approx(amplitude)


def test_rotated_queries_and_keys_are_multiplied_by_the_amplitude():
    x = normal(0, BATCH, SEQ, 3, 8)
    positions = jnp.broadcast_to(jnp.arange(SEQ), (BATCH, SEQ))
    exact = dataclasses.replace(YARN, attention_factor=1.0)
    want = 1.5 * rotate(x, rotation(positions, exact))

    got = rotate(
        x, rotation(positions, dataclasses.replace(exact, attention_factor=1.5))
    )

    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)  # float32, numbers near 1


def test_a_head_is_rotated_by_its_position():
    x, positions = normal(0, BATCH, SEQ, 3, 8), jnp.array([[0, 1, 2, 3, 7], [4] * 5])
    frequencies = rope_frequencies(8, 100.0, None)
    want = np.zeros(x.shape)
    for row, index, head in np.ndindex(*x.shape[:3]):
        want[row, index, head] = reference.rotate(
            np.asarray(x[row, index, head]), int(positions[row, index]), frequencies
        )

    got = rotate(x, rotation(positions))

    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)  # float32, numbers near 1


def test_a_position_that_does_not_exist_is_nan():
    positions = jnp.array([[0, LENGTH - 1, LENGTH, -1]])

    turned = rotate(normal(0, 1, 4, 3, 8), rotation(positions))

    assert np.isfinite(turned[:, :2]).all()
    assert np.isnan(turned[:, 2:]).all()


def test_only_the_distance_of_two_tokens_matters():
    query, key = normal(0, 1, SEQ, 3, 8), normal(1, 1, SEQ, 3, 8)

    def scores(start):
        positions = start + jnp.arange(SEQ)[None]
        turned = (rotate(x, rotation(positions)) for x in (query, key))
        return jnp.einsum("bshd,bthd->bhst", *turned)

    # Angles of 100 radians are rounded by 1e-5.
    np.testing.assert_allclose(scores(100), scores(0), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"qkv_bias": True}, {"qk_norm": True}], ids=str
)
def test_attention_is_that_of_a_loop_over_heads_and_tokens(changes):
    config = model_config(**changes)
    layer = make_model(config).blocks[0].attention
    x = normal(0, BATCH, SEQ, config.dim)
    positions = jnp.array([[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]])
    mask = np.tril(np.ones((BATCH, SEQ, SEQ), bool))
    mask[1, 2:, :2] = False
    want = loop(layer, config, x, positions, mask)

    turns = make_rotation(positions, config, LENGTH)
    got, cache = call(layer, x, turns, jnp.asarray(mask)[:, None])

    assert cache is None
    # float32 sums of a few dozen products of size 1
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def loop(layer: Attention, config, x, positions, mask):
    frequencies = reference.frequencies(config.head_dim, config.rope.theta)

    def heads(linear: nnx.Linear, norm: nnx.RMSNorm | None):
        out = np.float64(x) @ np.float64(linear.kernel[...])
        if config.qkv_bias:
            out = out + np.float64(linear.bias[...])
        out = out.reshape(BATCH, SEQ, -1, config.head_dim)
        if norm is not None:
            out = out / np.sqrt((out**2).mean(-1, keepdims=True) + config.norm_eps)
            out = out * np.float64(norm.scale[...])
        return out

    def turned(out):
        for row, index, head in np.ndindex(*out.shape[:3]):
            out[row, index, head] = reference.rotate(
                out[row, index, head], int(positions[row, index]), frequencies
            )
        return out

    norms = (layer.query_norm, layer.key_norm) if config.qk_norm else (None, None)
    query = turned(heads(layer.query, norms[0]))
    key = turned(heads(layer.key, norms[1]))
    out = reference.attend(query, key, heads(layer.value, None), mask)
    return out.reshape(BATCH, SEQ, -1) @ np.float64(layer.out.kernel[...])


def test_a_masked_token_has_no_influence():
    config = model_config()
    layer = make_model(config).blocks[0].attention
    x = normal(0, 1, SEQ, config.dim)
    turns = make_rotation(jnp.arange(SEQ)[None], config, SEQ)
    mask = jnp.ones((1, 1, SEQ, SEQ), bool).at[:, :, :3, 3:].set(False)

    def first_tokens(x):
        return layer(x, turns, mask)[0][:, :3].sum()

    gradient = np.asarray(jax.jit(jax.grad(first_tokens))(x))

    assert not gradient[:, 3:].any()
    assert gradient[:, :3].all()
