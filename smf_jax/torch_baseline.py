"""Sparse Memory Finetuning in plain PyTorch, for comparison.

The layer and the step follow the papers' formulas, in a `transformers` model. The
gradient of a table is masked to the selected rows, or sparse and filtered to them. It
is as fast as plain PyTorch allows: `embedding_bag` instead of a gather, no gradients of
frozen parameters. Needs the extra `torch`.

Source: Lample et al. 2019, arXiv:1907.05242; Berges et al. 2024, arXiv:2412.09764; Lin
et al. 2025, arXiv:2510.15103.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from smf_jax.config import ConfigError, MemoryConfig
from smf_jax.data.batches import Batch
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
        rows = F.embedding_bag(
            self.slots.flatten(0, 1),
            self.table[0],
            per_sample_weights=self.weights.flatten(0, 1),
            mode="sum",
            sparse=self.sparse,
        )
        out = self.out(rows.unflatten(0, x.shape[:2]) * F.silu(self.gate(x)))
        if config.relevance_gate:
            out = out * torch.sigmoid(self.relevance(x))
        return out


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
            self.memory_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Tensor:
        """Returns the block's output, of the shape of `x`."""
        out = self.memory(x)
        if not self.adds:
            return out
        dense = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return dense + self.memory_scale * out


def add_memory(model: nn.Module, config: MemoryConfig) -> nn.Module:
    """Adds memory layers to a `transformers` decoder, in place, and returns it.

    Added to a feed-forward, they change no output until they are trained.
    """
    shape, std = (config.num_slots, config.value_dim), config.value_dim**-0.5
    tables = [torch.empty(shape).normal_(0, std) for _ in range(config.num_tables)]
    model.model.memory_values = tables = nn.ParameterList(map(nn.Parameter, tables))
    for index, number in enumerate(config.layers):
        layer = model.model.layers[number]
        table = tables[0 if config.share_values else index]
        memory = MemoryLayer(config, model.config.hidden_size, table)
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
        tensors |= {name: tensor.float() for name, tensor in load_file(path).items()}
    if model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    try:
        model.float().load_state_dict(tensors)
    except RuntimeError as error:
        message = f"{folder}: tensors do not match config.json: {error}"
        raise ConfigError(message) from error
    return model.eval()


def tfidf(
    counts: Int[Tensor, " num_slots"],
    document_frequency: Int[Tensor, " num_slots"],
    num_documents: int,
) -> Float[Tensor, " num_slots"]:
    """Returns the TF-IDF score of each slot."""
    share = counts / counts.sum().clamp(min=1)
    return share * torch.log((num_documents + 1) / (document_frequency + 1))


def top_slots(scores: Float[Tensor, " num_slots"], top_t: int) -> Int[Tensor, " top"]:
    """Returns the `top_t` slots of highest score, those that score 0 left out.

    Ties go to the lower slot.
    """
    # `topk` promises no order of ties, so the low bits of the key rank the slots. The
    # bits of positive floats sort as the floats do.
    rank = torch.arange(len(scores), device=scores.device).flip(0)
    order = (scores.float().view(torch.int32).long() << 32) + rank
    slots = order.topk(top_t).indices
    return slots[scores[slots] > 0]


def count_reads(
    model: nn.Module, is_token: Bool[Tensor, "batch seq"]
) -> Int[Tensor, "tables num_slots"]:
    """Returns how often tokens of the last batch read each slot of each table."""
    tables = model.model.memory_values
    counts = torch.stack([torch.zeros_like(t[:, 0], dtype=torch.int64) for t in tables])
    for memory in _memory_layers(model):
        index = next(i for i, table in enumerate(tables) if table is memory.table[0])
        slots = memory.slots[is_token].flatten()
        counts[index] += torch.bincount(slots, minlength=counts.shape[1])
    return counts


def _memory_layers(model: nn.Module) -> list[MemoryLayer]:
    return [module for module in model.modules() if isinstance(module, MemoryLayer)]


def train_only_values(
    model: nn.Module, learning_rate: float, sparse: bool = False
) -> torch.optim.SGD:
    """Freezes all parameters but the tables, and returns the tables' optimizer.

    With `sparse`, their gradients hold only the rows that are read.
    """
    model.requires_grad_(False)
    model.model.memory_values.requires_grad_(True)
    for memory in _memory_layers(model):
        memory.sparse = sparse
    return torch.optim.SGD(model.model.memory_values, lr=learning_rate)


def smf_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    document_frequency: Int[Tensor, "tables num_slots"],
    num_documents: int,
    top_t: int,
) -> tuple[float, list[Int[Tensor, " top"]]]:
    """Trains the slots of highest TF-IDF, and returns the loss before and these slots.

    `train_only_values` prepares the model and returns the optimizer. A row of the batch
    is one text, padded at the end, so that no token attends to padding.
    """
    tables = model.model.memory_values
    tokens, targets, weights, segments = (
        torch.as_tensor(part, device=tables[0].device)
        for part in (batch.tokens, batch.targets, batch.weights, batch.segments)
    )
    logits = model(input_ids=tokens.long()).logits
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.long().flatten(), reduction="none"
    )
    loss = (losses * weights.flatten()).sum() / weights.sum().clamp(min=1)
    optimizer.zero_grad()
    loss.backward()
    with torch.no_grad():
        counts, written = count_reads(model, segments > 0), []
        for table, *reads in zip(tables, counts, document_frequency, strict=True):
            slots = top_slots(tfidf(*reads, num_documents), top_t)
            _keep_rows(table, slots)
            written.append(slots)
    optimizer.step()
    return loss.item(), written


def _keep_rows(table: nn.Parameter, slots: Int[Tensor, " top"]) -> None:
    """Removes all rows but the selected ones from a table's gradient."""
    mask = torch.zeros(len(table), 1, device=table.device).index_fill(0, slots, 1)
    if not table.grad.is_sparse:
        table.grad.mul_(mask)
        return
    # Repeated rows are not summed yet: few are left to sum.
    (read,), rows = table.grad._indices(), table.grad._values()
    kept = mask[read, 0] > 0
    table.grad = torch.sparse_coo_tensor(
        read[kept][None], rows[kept], table.shape, check_invariants=False
    )
