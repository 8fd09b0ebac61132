"""The model's output below its memory, computed once for each taught text.

Sparse finetuning changes rows of the memory's table and nothing else, so for a given
text everything before the first sum of rows is the same in every step.
"""

import functools
import os
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree
from rich.console import Console
from rich.progress import track

from smf_jax import multihost
from smf_jax.config import FinetuneConfig, ModelConfig, require
from smf_jax.data.batches import Batch
from smf_jax.model.transformer import Prefix
from smf_jax.sharding import MeshLayout
from smf_jax.train.metrics_log import PLAIN_LINES

MAX_SHARE = 0.5  # of a host's memory
GIB = 2**30


def uses_cache(config: FinetuneConfig, facts: Sequence[Batch]) -> bool:
    """Returns whether a run caches prefixes: only if texts repeat."""
    repeats = config.steps * config.batch_size > len(facts)
    return config.reuse_prefix and config.optim.method == "smf" and repeats


def require_room(
    facts: Sequence[Batch], model: ModelConfig, layout: MeshLayout
) -> float:
    """Returns the GiB that each process caches: at most half of its host's memory."""
    width = np.dtype(layout.compute.activations).itemsize
    reads = model.memory.num_heads * model.memory.top_k
    bytes_per_token = model.dim * width + reads * (4 + 4)  # slots and weights
    needed = len(facts) * facts[0].tokens.size * bytes_per_token / GIB
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    require(
        needed <= MAX_SHARE * total,
        f"reuse_prefix=True would cache {needed:.1f} GiB for {len(facts):,} facts in "
        f"each process on this host of {total:.1f} GiB: set it to False",
    )
    return needed


def with_prefixes(
    facts: Sequence[Batch],
    graph: nnx.GraphDef,
    params: tuple[PyTree, ...],
    facts_per_batch: int,
    console: Console,
) -> list[Batch]:
    """Returns each fact's rows, equally many, with the model's `Prefix` of them."""
    layout = nnx.merge(graph, *params).layout
    rows = len(facts[0].tokens)
    cached, printed = [], 0
    starts = track(
        range(0, len(facts), facts_per_batch),
        "prefixes",
        console=console,
        disable=not console.is_terminal,
    )
    for start in starts:
        multihost.busy(f"prefixes, from fact {start}")
        tenth = start * PLAIN_LINES // len(facts)
        if not console.is_terminal and tenth > printed:
            printed = tenth
            console.print(f"prefixes {start}/{len(facts)}")
        some = facts[start : start + facts_per_batch]
        padding = some[-1:] * (facts_per_batch - len(some))  # for one compilation
        batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *some, *padding)
        prefix = _prefix(graph, params, layout.shard_batch(batch))
        prefix = jax.tree.map(np.asarray, prefix)
        for number, fact in enumerate(some):
            own = slice(number * rows, (number + 1) * rows)
            of_fact = jax.tree.map(lambda leaf, own=own: leaf[own].copy(), prefix)
            cached.append(fact._replace(prefix=of_fact))
    return cached


@functools.partial(jax.jit, static_argnames="graph")
def _prefix(graph, params, batch) -> Prefix:
    model = nnx.merge(graph, *params)
    prefix = model.prefix(batch.tokens, batch.positions, batch.segments)
    # Replicated, as every host makes the batches of all.
    return jax.tree.map(model.layout.constrain, prefix)
