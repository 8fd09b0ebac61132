"""The slots that facts read, which are known before the first step.

Reads of the lowest memory layer do not depend on any row. Those of layers above it do a
little: there they are counted once, before the first step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from smf_jax import multihost
from smf_jax.config.model import ROW_UNIT
from smf_jax.data.batches import Batch
from smf_jax.model.transformer import Transformer
from smf_jax.slots import document_frequency
from smf_jax.slots.document_frequency import Background
from smf_jax.slots.select import Score, top_slots
from smf_jax.slots.sparse_table import SlotCounts
from smf_jax.verbs.usage import make_read_counter, slots_of

FACTS_PER_BATCH = 16


class FactReads(NamedTuple):
    """The slots that the tokens of a fact read, and how often."""

    slots: Int[np.ndarray, " slots"]  # rising
    counts: Int[np.ndarray, " slots"]


def slots_read(model: Transformer, facts: Sequence[Batch]) -> list[FactReads]:
    """Returns what each fact reads of a calibrated memory, rows or not."""
    graph, params = nnx.split(model)
    reads = []
    for start in range(0, len(facts), FACTS_PER_BATCH):
        multihost.busy(f"finding the slots of facts, from fact {start}")
        some = list(facts[start : start + FACTS_PER_BATCH])
        padding = some[-1:] * (FACTS_PER_BATCH - len(some))  # for one compilation
        batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *some, *padding)
        slots = np.asarray(slots_of(graph, params, model.layout.shard_batch(batch)))
        slots = slots[: len(batch.tokens)].reshape(FACTS_PER_BATCH, -1, slots.shape[-1])
        for fact, of_fact in zip(some, slots, strict=False):
            # The first token of a text is an attention sink: what is written there
            # reaches every other token, of any text.
            counts = (fact.segments > 0) & (fact.positions > 0)
            of_tokens = of_fact[counts.ravel()]
            reads.append(FactReads(*np.unique(of_tokens, return_counts=True)))
    return reads


def own_slots(
    reads: Sequence[FactReads],
    documents: SlotCounts,
    facts: SlotCounts,
    score: Score,
    most: int,
) -> list[Int[np.ndarray, " own"]]:
    """Returns the slots of the highest scores of each fact, at most `most`, rising.

    `facts` counts these facts and those taught before.
    """
    own = []
    for slots, counts in reads:
        # In few sizes, each of which is compiled.
        width = -(-max(len(slots), 1) // ROW_UNIT) * ROW_UNIT
        arrays = (counts, documents.at(slots), facts.at(slots))
        counts, of_documents, of_facts = (
            jnp.asarray(np.pad(array, (0, width - len(slots))), jnp.int32)
            for array in arrays
        )
        background = (of_documents, documents.total, of_facts, facts.total)
        best = np.asarray(top_slots(score(counts, *background), min(most, width)))
        own.append(np.sort(slots[best[best < len(slots)]]))
    return own


def with_facts(
    background: Background, model: Transformer, facts: Sequence[Batch]
) -> Background:
    """Returns a background that also knows how many facts read each slot."""
    graph, params = nnx.split(model)
    layout = model.layout
    count = make_read_counter(graph, model.config.memory, layout)
    read = (count((params,), layout.shard_batch(fact)) > 0 for fact in facts)
    of_facts = document_frequency.collect(read)
    return background._replace(
        fact_frequency=of_facts.document_frequency, num_facts=np.int32(len(facts))
    )
