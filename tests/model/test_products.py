import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smf_jax import cpu, sharding
from smf_jax.config import ComputeConfig, LoraConfig, MeshConfig
from smf_jax.model.build import abstract_model, inference_parts
from smf_jax.model.lora import add_lora
from smf_jax.model.loss import sum_losses
from smf_jax.model.products import product, rounded_einsum, rounded_product
from smf_jax.model.transformer import FEW_TOKENS
from smf_jax.sharding import ONE_DEVICE, MeshLayout, choose_products, make_layout
from smf_jax.tree import named
from tests.tiny import VOCAB, bits, call, make_model, memory_config, model_config

TEXT = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (2, 9)), jnp.int32)
BFLOAT16 = MeshLayout(compute=ComputeConfig(products="bfloat16"))
# Float32 sums, in another order, of a few dozen products near 1.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def rounded(x):
    return np.float64(jnp.asarray(x, jnp.bfloat16))


SPECS = {
    "a linear map": ("ti,io->to", (5, 7), (7, 3)),
    "a tied head": ("td,vd->tv", (5, 7), (11, 7)),
    "scores": ("bhqd,bhkd->bhqk", (2, 3, 4, 6), (2, 3, 5, 6)),
    "sums of values": ("bhqk,bhkd->bhqd", (2, 3, 4, 5), (2, 3, 5, 6)),
}


@pytest.mark.parametrize(("spec", "left", "right"), SPECS.values(), ids=SPECS)
def test_factors_are_rounded_and_their_products_summed_in_float32(spec, left, right):
    left, right = normal(0, *left), normal(1, *right)
    want = np.einsum(spec, rounded(left), rounded(right))

    got = jax.jit(rounded_einsum, static_argnums=0)(spec, left, right)

    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize(("spec", "left", "right"), SPECS.values(), ids=SPECS)
def test_a_gradient_is_of_the_rounded_factors_and_cotangent(spec, left, right):
    left, right = normal(0, *left), normal(1, *right)
    out, pull_back = jax.vjp(lambda *pair: rounded_einsum(spec, *pair), left, right)
    cotangent = normal(2, *out.shape)
    of_left, of_right, of_out = spec.replace("->", ",").split(",")
    left, right, rounded_cotangent = map(rounded, (left, right, cotangent))
    want = (
        np.einsum(f"{of_out},{of_right}->{of_left}", rounded_cotangent, right),
        np.einsum(f"{of_left},{of_out}->{of_right}", left, rounded_cotangent),
    )

    got = pull_back(cotangent)

    for one, other in zip(got, want, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, **CLOSE)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
def test_a_rounded_product_has_the_type_of_its_input_or_the_preferred_one(dtype):
    x, kernel = normal(0, 2, 5, 7, dtype=dtype), normal(1, 7, 3, dtype=dtype)

    assert rounded_product(x, kernel).dtype == dtype
    preferred = rounded_product(x, kernel, preferred_element_type=jnp.float32)
    assert preferred.dtype == jnp.float32
    assert preferred.shape == product(x, kernel).shape == (2, 5, 3)


def test_a_single_row_is_multiplied_as_one_of_many():
    x, kernel = normal(0, 5, 7), normal(1, 7, 3)
    want = np.float64(rounded(x[:1])) @ np.float64(rounded(kernel))

    got, of_x = jax.vjp(lambda x: rounded_product(x, kernel), x[:1])

    np.testing.assert_allclose(got, want, **CLOSE)
    (gradient,) = of_x(jnp.ones((1, 3)))
    np.testing.assert_allclose(gradient[0], rounded(kernel).sum(1), **CLOSE)


@pytest.mark.parametrize("tokens", [2, FEW_TOKENS])
@pytest.mark.parametrize("layout", [ONE_DEVICE, BFLOAT16], ids=["exact", "rounded"])
def test_logits_are_the_products_with_the_embedding(tokens, layout):
    config = model_config(memory=None, tie_embeddings=True)
    graph, _ = nnx.split(abstract_model(config, layout))
    model = nnx.merge(graph, nnx.split(make_model(config))[1])
    logits_of, embedding = model.head_parts()
    x = normal(0, tokens // 2, 2, config.dim)
    factors = (x, embedding)
    if layout is BFLOAT16:
        factors = map(rounded, factors)
    want = np.einsum("btd,vd->btv", *map(np.float64, factors))

    got = jax.jit(logits_of)(embedding, x)

    np.testing.assert_allclose(got, want, **CLOSE)


def models(**changes):
    """Returns a model with products of float32, and the same with rounded factors."""
    exact = make_model(model_config(**changes))
    graph, _ = nnx.split(abstract_model(exact.config, BFLOAT16))
    return exact, nnx.merge(graph, nnx.split(exact)[1])


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_that_of_float32_up_to_the_rounding_of_factors(tied):
    exact, fast = models(memory=None, tie_embeddings=tied, qkv_bias=True)

    want, got = (np.asarray(call(model, TEXT)[0]) for model in (exact, fast))

    assert got.dtype == np.float32
    assert not np.array_equal(got, want)
    # A factor is rounded by 2^-9 at most, in each of two layers' few products.
    np.testing.assert_allclose(got, want, rtol=0, atol=0.03 * np.abs(want).max())


@functools.partial(jax.jit, static_argnums=0)
def gradients(graph, params):
    def loss(params):
        model = nnx.merge(graph, params)
        hidden, _ = model.hidden(TEXT)
        return sum_losses(model, hidden, TEXT, jnp.ones(TEXT.shape))

    return jax.grad(loss)(params)


def test_gradients_are_float32_and_those_of_float32_up_to_rounding():
    exact, fast = models(memory=None)

    want, got = (gradients(*nnx.split(model)) for model in (exact, fast))

    for one, other in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        assert one.dtype == jnp.float32
        assert not np.array_equal(one, other)
        bound = 0.05 * np.abs(other).max()  # as above, and of a backward pass, too
        np.testing.assert_allclose(one, other, rtol=0, atol=bound)


def test_no_product_of_a_dense_layer_has_factors_of_float32():
    _, fast = models(memory=None, tie_embeddings=False)
    add_lora(fast, LoraConfig(rank=2), rngs=nnx.Rngs(0))

    jaxpr = jax.make_jaxpr(gradients, static_argnums=0)(*nnx.split(fast))

    factors = [var.aval.dtype for eqn in dots(jaxpr.jaxpr) for var in eqn.invars]
    assert len(factors) > 50
    assert set(factors) == {jnp.dtype(jnp.bfloat16)}


def dots(jaxpr):
    """Yields every product of a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive is jax.lax.dot_general_p:
            yield eqn
        for param in jax.tree.leaves(eqn.params, is_leaf=is_jaxpr):
            if is_jaxpr(param):
                yield from dots(getattr(param, "jaxpr", param))


def is_jaxpr(param):
    return hasattr(param, "eqns") or hasattr(param, "jaxpr")


def test_scores_of_slots_and_sums_of_rows_are_float32():
    exact, fast = (model.blocks[1].memory for model in models())
    x = normal(0, 2, 5, fast.dim)
    table = normal(1, fast.config.num_slots, fast.config.value_dim)
    reads = exact.rank(x)

    rounded_reads = jax.make_jaxpr(fast.rank)(x)
    products = list(dots(rounded_reads.jaxpr))

    # The map to queries is a dense product, the scores of keys are not.
    types = [eqn.invars[0].aval.dtype for eqn in products]
    assert types[0] == jnp.bfloat16
    assert set(types[1:]) == {jnp.dtype(jnp.float32)}
    sums, _ = fast(x, table, None, reads)
    assert sums.dtype == jnp.float32


def test_kernels_that_are_rounded_once_give_the_same_numbers():
    _, fast = models(memory=memory_config(relevance_gate=True), tie_embeddings=False)
    want, _ = call(fast, TEXT)

    graph, params = inference_parts(fast)
    got, _ = call(nnx.merge(graph, params), TEXT)

    np.testing.assert_array_equal(bits(got), bits(want))
    rounded = {n for n, leaf in named(params).items() if leaf.dtype == jnp.bfloat16}
    kernels = {name for name in named(params) if name.endswith("/kernel")}
    assert kernels - rounded == {"blocks/1/memory/relevance/kernel"}
    assert rounded < kernels


def test_without_rounding_the_parts_of_a_model_are_its_own_arrays():
    exact, _ = models(memory=None)

    _, params = inference_parts(exact)

    kept = zip(*map(jax.tree.leaves, (params, nnx.state(exact))), strict=True)
    assert all(one is other for one, other in kept)


def test_a_cache_holds_keys_and_values_as_products_round_them():
    _, fast = models(memory=None)
    is_token = jnp.ones(TEXT.shape, bool)
    positions = jnp.broadcast_to(jnp.arange(TEXT.shape[1]), TEXT.shape)
    caches = fast.empty_caches(*TEXT.shape)
    want = call(fast, TEXT)[0][:, -1]

    got, caches = fast.decode(TEXT, positions, is_token, caches)

    assert caches[0].keys.dtype == jnp.bfloat16
    np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize(
    ("flags", "platform", "products"),
    [
        ("avx512_bf16 amx_bf16 amx_tile", "cpu", "bfloat16"),
        ("avx512_bf16 avx512f", "cpu", "float32"),
        ("amx_bf16", "gpu", "float32"),
        ("", "cpu", "float32"),
    ],
)
def test_auto_rounds_on_cpus_with_matrix_instructions(
    tmp_path, monkeypatch, flags, platform, products
):
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\nbogomips\t: 1\n")
    monkeypatch.setattr(cpu, "CPUINFO", info)
    monkeypatch.setattr(sharding, "has_amx", cpu.has_amx)
    cpu.has_amx.cache_clear()

    compute = choose_products(ComputeConfig(), platform)

    cpu.has_amx.cache_clear()
    assert compute.products == products


def test_a_system_without_cpuinfo_is_taken_to_lack_them(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "none")
    cpu.has_amx.cache_clear()

    has = cpu.has_amx()

    cpu.has_amx.cache_clear()
    assert not has


def test_the_user_decides_before_the_cpu_does(monkeypatch):
    monkeypatch.setattr(sharding, "has_amx", lambda: True)

    chosen = [
        make_layout(MeshConfig(data=1), ComputeConfig(products=products), None)
        for products in ("auto", "float32", "bfloat16")
    ]

    assert [layout.rounds_factors for layout in chosen] == [True, False, True]
