"""LoRA: low-rank additions to the linear layers of a model."""

import re

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smf_jax.config import LoraConfig, require


class LoRAParam(nnx.Param):
    """A factor of a low-rank addition; its type says what LoRA trains."""


class LoRALinear(nnx.Module):
    """A linear layer plus `alpha / rank * x @ down @ up`; `up` starts at zero.

    Source: Hu et al. 2021, arXiv:2106.09685.
    """

    def __init__(self, base: nnx.Linear, config: LoraConfig, *, rngs: nnx.Rngs):
        inputs, outputs = base.kernel.shape
        init = nnx.initializers.normal(inputs**-0.5)
        self.base = base
        self.down = LoRAParam(init(rngs.params(), (inputs, config.rank)))
        self.up = LoRAParam(jnp.zeros((config.rank, outputs)))
        self.scale = config.alpha / config.rank

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Array:
        """Returns the layer's output with the addition."""
        down, up = (factor[...].astype(x.dtype) for factor in (self.down, self.up))
        product, axes = self.base.dot_general, (((x.ndim - 1,), (0,)), ((), ()))
        added = product(product(x, down, axes), up, axes)
        return self.base(x) + self.scale * added


def merge_lora(model: nnx.Module) -> None:
    """Merges every low-rank addition into its linear layer, in place."""
    modules = dict(nnx.iter_modules(model))
    for path, module in list(modules.items()):
        if isinstance(module, LoRALinear):
            # At full precision, as the sum with the kernel is rounded to float32.
            with jax.default_matmul_precision("highest"):
                added = module.down[...] @ module.up[...]
            module.base.kernel[...] += module.scale * added
            setattr(modules[path[:-1]], path[-1], module.base)


def add_lora(model: nnx.Module, config: LoraConfig, *, rngs: nnx.Rngs) -> None:
    """Wraps every linear layer whose path matches `config.targets`, in place.

    A path reads like `blocks/0/attention/query`.

    Raises:
      ConfigError: No linear layer matches.
    """
    modules = dict(nnx.iter_modules(model))
    linears = {
        "/".join(map(str, path)): path
        for path, module in modules.items()
        if isinstance(module, nnx.Linear)
    }
    targets = [name for name in linears if re.fullmatch(config.targets, name)]
    require(
        bool(targets),
        f"lora.targets={config.targets!r} matches none of the linear layers: "
        + ", ".join(linears),
    )
    for path in map(linears.get, targets):
        wrapped = LoRALinear(modules[path], config, rngs=rngs)
        setattr(modules[path[:-1]], path[-1], wrapped)
