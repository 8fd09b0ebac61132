"""The step of Sparse Memory Finetuning in PyTorch."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from smf_jax.data.batches import Batch
from smf_jax.torch_baseline.layers import memory_layers


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
    for memory in memory_layers(model):
        index = next(i for i, table in enumerate(tables) if table is memory.table[0])
        slots = memory.slots[is_token].flatten()
        counts[index] += torch.bincount(slots, minlength=counts.shape[1])
    return counts


def train_only_values(
    model: nn.Module, learning_rate: float, sparse: bool = False
) -> torch.optim.SGD:
    """Freezes all parameters but the tables, and returns the tables' optimizer.

    With `sparse`, their gradients hold only the rows that are read.
    """
    model.requires_grad_(False)
    model.model.memory_values.requires_grad_(True)
    for memory in memory_layers(model):
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
