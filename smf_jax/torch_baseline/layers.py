"""Memory layers in PyTorch: added to a decoder, or loaded from an export."""

from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from smf_jax.config import ConfigError, MemoryConfig
from smf_jax.hf import open_source, read_config_json, split_config


class MemoryLayer(nn.Module):
    """A product-key memory layer; `slots` and `weights` are those of its last call."""

    def __init__(self, config: MemoryConfig, dim: int, table: nn.Parameter):
        super().__init__()
        self.config = config
        self.table = [table]  # a list, so that it is not a parameter of the layer
        half = config.key_dim // 2
        self.query = nn.Linear(dim, config.num_heads * config.key_dim, bias=False)
        self.keys = nn.Parameter(
            torch.empty(config.num_heads, 2, config.num_keys, half)
        )
        if config.query_norm:
            self.query_norm = nn.RMSNorm(half, eps=1e-6)
        if config.key_norm:
            self.key_norm = nn.RMSNorm(half, eps=1e-6)
        self.gate = nn.Linear(dim, config.value_dim, bias=False)
        self.out = nn.Linear(config.value_dim, dim, bias=False)
        if config.relevance_gate:
            self.relevance = nn.Linear(dim, 1)
            nn.init.zeros_(self.relevance.weight)
            nn.init.zeros_(self.relevance.bias)
        bound = config.key_dim**-0.5
        nn.init.uniform_(self.keys, -bound, bound)
        for layer in (self.query, self.gate, self.out):
            std = layer.in_features**-0.5
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        self.slots = self.weights = None  # [batch, seq, reads]
        self.sparse = False  # whether the table's gradient holds only the rows read

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Tensor:
        """Returns the layer's output, of the shape of `x`."""
        config = self.config
        query = self.query(x).unflatten(-1, (config.num_heads, 2, -1))
        keys = self.keys
        if config.query_norm:
            query = self.query_norm(query.float())  # float32, as its scale
        if config.key_norm:
            keys = self.key_norm(keys)
        slots, scores = product_key_top_k(query, keys, config.top_k)
        self.slots = slots.flatten(-2)
        self.weights = scores.softmax(-1, dtype=torch.float32).flatten(-2)
        out = self.out(weighted_rows(self) * F.silu(self.gate(x)))
        if config.relevance_gate:
            out = out * torch.sigmoid(self.relevance(x))
        return out


class CalibratedMemory(nn.Module):
    """A memory layer that reads by statistics; `slots` are rows of its last call."""

    def __init__(self, config: MemoryConfig, dim: int, table: nn.Parameter):
        super().__init__()
        self.config = config
        self.table = [table]  # a list, so that it is not a parameter of the layer
        half = config.key_dim // 2
        self.mean = nn.Parameter(torch.zeros(dim))
        shape = (dim, config.num_heads * config.key_dim)
        self.projection = nn.Parameter(torch.zeros(shape))
        shape = (config.num_heads, 2, config.num_keys, half)
        self.keys = nn.Parameter(torch.zeros(shape))
        self.gain = nn.Parameter(torch.ones(()))
        if config.num_rows is not None:
            unused = torch.full((config.table_rows,), config.num_slots)
            self.register_buffer("slot_ids", unused.int())
        self.slots = self.weights = None  # [batch, seq, reads]
        self.sparse = False  # whether the table's gradient holds only the rows read

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Tensor:
        """Returns the layer's output, of the shape of `x`."""
        config = self.config
        projected = (x.float() - self.mean) @ self.projection
        query = F.normalize(projected.unflatten(-1, (config.num_heads, 2, -1)), dim=-1)
        slots, scores = product_key_top_k(query, self.keys, config.top_k)
        weights = (scores / config.calibrated.temperature).softmax(-1)
        self.weights = weights.flatten(-2) / config.num_heads
        self.slots = self._rows(slots.flatten(-2))
        return (self.gain * weighted_rows(self)).to(x.dtype)

    def _rows(
        self, slots: Int[Tensor, "batch seq reads"]
    ) -> Int[Tensor, "batch seq reads"]:
        """Returns the row of each slot, or the last one, which is zero."""
        if self.config.num_rows is None:
            return slots
        last = len(self.slot_ids) - 1
        rows = torch.searchsorted(self.slot_ids, slots.int()).clamp(max=last)
        return torch.where(self.slot_ids[rows] == slots, rows, last)


def weighted_rows(
    memory: MemoryLayer | CalibratedMemory,
) -> Float[Tensor, "batch seq value_dim"]:
    """Returns the weighted sum of the rows that each token read last."""
    sums = F.embedding_bag(
        memory.slots.flatten(0, 1),
        memory.table[0],
        per_sample_weights=memory.weights.flatten(0, 1),
        mode="sum",
        sparse=memory.sparse,
    )
    return sums.unflatten(0, memory.slots.shape[:2])


def product_key_top_k(
    query: Float[Tensor, "batch seq heads 2 half"],
    keys: Float[Tensor, "heads 2 num_keys half"],
    top_k: int,
) -> tuple[
    Int[Tensor, "batch seq heads top_k"], Float[Tensor, "batch seq heads top_k"]
]:
    """Returns each head's best slots and their scores, from its best half-keys."""
    halves = torch.einsum("bshpc,hpnc->bshpn", query, keys)
    best, ids = halves.topk(top_k)
    pairs = best[..., 0, :, None] + best[..., 1, None, :]
    slots = ids[..., 0, :, None] * keys.shape[2] + ids[..., 1, None, :]
    scores, selected = pairs.flatten(-2).topk(top_k)
    return slots.flatten(-2).gather(-1, selected), scores


class MemoryFeedForward(nn.Module):
    """A memory layer that replaces a feed-forward, or is added to it."""

    def __init__(
        self, config: MemoryConfig, feed_forward: nn.Module, memory: nn.Module
    ):
        super().__init__()
        self.memory = memory
        self.adds = config.placement == "add"
        if self.adds:
            self.gate_proj = feed_forward.gate_proj
            self.up_proj = feed_forward.up_proj
            self.down_proj = feed_forward.down_proj
        if self.adds and config.calibrated is None:
            self.memory_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Tensor:
        """Returns the block's output, of the shape of `x`."""
        out = self.memory(x)
        if not self.adds:
            return out
        if self.memory.config.calibrated is None:
            out = self.memory_scale * out
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)) + out


def add_memory(model: nn.Module, config: MemoryConfig) -> nn.Module:
    """Adds memory layers to a `transformers` decoder, in place, and returns it.

    Added to a feed-forward, they change no output until they are trained. A calibrated
    one is left for `load` to fill.
    """
    is_calibrated = config.calibrated is not None
    kind = CalibratedMemory if is_calibrated else MemoryLayer
    shape = (config.table_rows, config.value_dim)
    std = 0 if is_calibrated else config.value_dim**-0.5
    tables = [torch.empty(shape).normal_(0, std) for _ in range(config.num_tables)]
    model.model.memory_values = tables = nn.ParameterList(map(nn.Parameter, tables))
    for index, number in enumerate(config.layers):
        layer = model.model.layers[number]
        table = tables[0 if config.share_values else index]
        memory = kind(config, model.config.hidden_size, table)
        layer.mlp = MemoryFeedForward(config, layer.mlp, memory)
    model.save_pretrained = _refuse_to_save
    return model


def _refuse_to_save(*arguments, **options) -> None:
    raise NotImplementedError(
        "transformers would load the saved model without its memory layers: save "
        "model.state_dict() instead"
    )


def load(directory: str | Path) -> nn.Module:
    """Loads an export of `smf export-hf`, with its memory layers, in float32.

    Raises:
      ConfigError: The configuration is broken, or the tensors do not match it.
    """
    folder = Path(directory)
    decoder, memory = split_config(read_config_json(open_source(folder)))
    config = transformers.AutoConfig.for_model(**decoder)
    model = transformers.AutoModelForCausalLM.from_config(config)
    if memory is not None:
        add_memory(model, memory)
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    if model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    try:
        model.float().load_state_dict(tensors)  # which casts
    except RuntimeError as error:
        message = f"{folder}: tensors do not match config.json: {error}"
        raise ConfigError(message) from error
    return model.eval()


def memory_layers(model: nn.Module) -> list[MemoryLayer | CalibratedMemory]:
    """Returns the memory layers of a decoder, from the lowest to the highest."""
    kinds = (MemoryLayer, CalibratedMemory)
    return [module for module in model.modules() if isinstance(module, kinds)]
