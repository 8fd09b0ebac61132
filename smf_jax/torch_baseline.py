"""Sparse Memory Finetuning as one writes it in PyTorch, around a `transformers` model.

The other side of comparisons: the same layer and step from the papers' formulas, with
the gradient of the whole table masked to the chosen rows, or a sparse one cut to them.
Tuned as far as plain PyTorch goes: `embedding_bag` instead of a gather, no gradient
where nothing trains. Needs the extra `torch`.

Source: Lample et al. 2019, arXiv:1907.05242; Berges et al. 2024, arXiv:2412.09764; Lin
et al. 2025, arXiv:2510.15103.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from smf_jax.config import ConfigError, MemoryConfig
from smf_jax.data.batches import Batch
from smf_jax.hf import read_model_json, split_config


class Reads(NamedTuple):
    """Which slots each token read, and with what weights."""

    slots: Int[Tensor, "batch seq reads"]
    weights: Float[Tensor, "batch seq reads"]


class MemoryLayer(nn.Module):
    """A product-key memory that reads a table it shares; `reads` are its last ones."""

    def __init__(self, config: MemoryConfig, dim: int, table: nn.Parameter):
        super().__init__()
        self.config = config
        self.table = [table]  # in a list: the parameter is the model's, not the layer's
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
        self.reads: Reads | None = None
        self.sparse = False  # the table's gradient: the read rows alone
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Draws new parameters, but for norms, from the ranges that ours are from."""
        bound = self.config.key_dim**-0.5
        self.keys.uniform_(-bound, bound)
        for layer in (self.query, self.gate, self.out):
            std = layer.in_features**-0.5
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        if self.config.relevance_gate:
            self.relevance.weight.zero_()
            self.relevance.bias.zero_()

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Tensor:
        """Returns what is recalled for each token, of the shape of `x`."""
        self.reads = reads = self.read(x)
        rows = F.embedding_bag(
            reads.slots.flatten(0, 1),
            self.table[0],
            per_sample_weights=reads.weights.flatten(0, 1),
            mode="sum",
            sparse=self.sparse,
        )
        recalled = rows.unflatten(0, x.shape[:2]) * F.silu(self.gate(x))
        out = self.out(recalled)
        if self.config.relevance_gate:
            out = out * torch.sigmoid(self.relevance(x))
        return out

    def read(self, x: Float[Tensor, "batch seq dim"]) -> Reads:
        """Returns the best `top_k` slots of each head, and their softmax."""
        config = self.config
        query = self.query(x).unflatten(-1, (config.num_heads, 2, -1))
        keys = self.keys
        if config.query_norm:
            query = self.query_norm(query.float())  # of the type of its scale
        if config.key_norm:
            keys = self.key_norm(keys)
        slots, scores = product_key_top_k(query, keys, config.top_k)
        weights = scores.softmax(-1, dtype=torch.float32)  # the type of the table
        return Reads(slots.flatten(-2), weights.flatten(-2))


def product_key_top_k(
    query: Float[Tensor, "batch seq heads 2 half"],
    keys: Float[Tensor, "heads 2 num_keys half"],
    top_k: int,
) -> tuple[
    Int[Tensor, "batch seq heads top_k"], Float[Tensor, "batch seq heads top_k"]
]:
    """Returns each head's best slots and their scores, of all pairs of best halves."""
    halves = torch.einsum("bshpc,hpnc->bshpn", query, keys)
    best, ids = halves.topk(top_k)
    pairs = best[..., 0, :, None] + best[..., 1, None, :]
    slots = ids[..., 0, :, None] * keys.shape[2] + ids[..., 1, None, :]
    scores, chosen = pairs.flatten(-2).topk(top_k)
    return slots.flatten(-2).gather(-1, chosen), scores


class MemoryFeedForward(nn.Module):
    """A memory in the place of a feed-forward, or, scaled, beside it."""

    def __init__(
        self, config: MemoryConfig, feed_forward: nn.Module, memory: nn.Module
    ):
        super().__init__()
        self.memory = memory
        if config.placement == "add":
            self.gate_proj = feed_forward.gate_proj
            self.up_proj = feed_forward.up_proj
            self.down_proj = feed_forward.down_proj
            self.memory_scale = nn.Parameter(torch.zeros(()))
        self.adds = config.placement == "add"

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Tensor:
        """Returns the layer's output, of the shape of `x`."""
        recalled = self.memory(x)
        if not self.adds:
            return recalled
        dense = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return dense + self.memory_scale * recalled


def add_memory(model: nn.Module, config: MemoryConfig) -> nn.Module:
    """Gives a `transformers` decoder memory layers, in place, and returns it.

    Beside a feed-forward they change nothing until they are trained.
    """
    shape, std = (config.num_slots, config.value_dim), config.value_dim**-0.5
    tables = [torch.empty(shape).normal_(0, std) for _ in range(config.num_tables)]
    model.model.memory_values = tables = nn.ParameterList(map(nn.Parameter, tables))
    for place, number in enumerate(config.layers):
        layer = model.model.layers[number]
        table = tables[0 if config.share_values else place]
        memory = MemoryLayer(config, model.config.hidden_size, table)
        layer.mlp = MemoryFeedForward(config, layer.mlp, memory)
    model.save_pretrained = _refuse_to_save
    return model


def _refuse_to_save(*arguments, **options) -> None:
    raise NotImplementedError(
        "transformers would write a model that it then loads without its memory: save "
        "model.state_dict() instead"
    )


def load(directory: str | Path) -> nn.Module:
    """Loads what `smf export-hf` wrote, with its memory layers, in float32.

    Raises:
      ConfigError: It is no such model.
    """
    folder = Path(directory)
    config = read_model_json(folder, "config.json")
    decoder, memory = split_config(config)
    kind = transformers.AutoConfig.for_model(**decoder)
    model = transformers.AutoModelForCausalLM.from_config(kind)
    if memory is not None:
        add_memory(model, memory)
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    if model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    try:
        model.float().load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(f"{folder} does not hold its model: {error}") from error
    return model.eval()


def tfidf(
    counts: Int[Tensor, " num_slots"],
    document_frequency: Int[Tensor, " num_slots"],
    num_documents: int,
) -> Float[Tensor, " num_slots"]:
    """Scores how far a batch's reads of each slot stand out from the background."""
    share = counts / counts.sum().clamp(min=1)
    return share * torch.log((num_documents + 1) / (document_frequency + 1))


def top_slots(scores: Float[Tensor, " num_slots"], top_t: int) -> Int[Tensor, " top"]:
    """Returns the slots of highest score, at most `top_t` and only those above 0.

    Ties go to the lower slot, which `topk` alone does not promise: the bits of floats
    above 0 are in the order of the floats, and what follows them ranks the slots.
    """
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
    for layer in model.model.layers:
        if isinstance(layer.mlp, MemoryFeedForward):
            memory = layer.mlp.memory
            pool = next(i for i, table in enumerate(tables) if table is memory.table[0])
            read = memory.reads.slots[is_token].flatten()
            counts[pool] += torch.bincount(read, minlength=counts.shape[1])
    return counts


def train_only_values(
    model: nn.Module, learning_rate: float, sparse: bool = False
) -> torch.optim.SGD:
    """Freezes all but the tables, in place, and returns the optimizer of those.

    `sparse` has their gradients hold the rows that are read, and no others.
    """
    model.requires_grad_(False)
    model.model.memory_values.requires_grad_(True)
    for layer in model.model.layers:
        if isinstance(layer.mlp, MemoryFeedForward):
            layer.mlp.memory.sparse = sparse
    return torch.optim.SGD(model.model.memory_values, lr=learning_rate)


class Step(NamedTuple):
    """What a step did."""

    loss: float  # before it, in nats
    slots: list[Int[Tensor, " top"]]  # written, of each table


def smf_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    document_frequency: Int[Tensor, "tables num_slots"],
    num_documents: int,
    top_t: int,
) -> Step:
    """Takes one step on the slots that stand out in a batch.

    Args:
      model: With memory layers; see `train_only_values`.
      optimizer: Of the tables.
      batch: One text a row, padding at the end: no token then attends to padding.
      document_frequency: Background batches that read each slot; where tables are.
      num_documents: Background batches in all.
      top_t: Slots written per table.
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
        for table, *known in zip(tables, counts, document_frequency, strict=True):
            slots = top_slots(tfidf(*known, num_documents), top_t)
            _keep_rows(table, slots)
            written.append(slots)
    optimizer.step()
    return Step(loss.item(), written)


def _keep_rows(table: nn.Parameter, slots: Int[Tensor, " top"]) -> None:
    """Takes all rows but the chosen ones out of a table's gradient."""
    mask = torch.zeros(len(table), 1, device=table.device).index_fill(0, slots, 1)
    if not table.grad.is_sparse:
        table.grad.mul_(mask)
        return
    # Before rows are summed, so that it is done for few.
    (read,), rows = table.grad._indices(), table.grad._values()
    kept = mask[read, 0] > 0
    few = (read[kept][None], rows[kept], table.shape)
    table.grad = torch.sparse_coo_tensor(*few, check_invariants=False)
