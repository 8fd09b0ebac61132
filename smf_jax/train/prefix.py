"""What a model makes of taught texts below its memory, computed once for all steps.

Sparse finetuning changes rows of the memory's table and nothing else, so that for a
text all that comes before the first sum of rows is the same in every step.
"""

import functools
import math
import os
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree
from rich.console import Console
from rich.progress import track

from smf_jax import distributed
from smf_jax.config import FinetuneConfig, ModelConfig, require
from smf_jax.data.batches import Batch
from smf_jax.model.transformer import Prefix
from smf_jax.sharding import Placement
from smf_jax.train.loop import PLAIN_LINES

MOST = 0.5  # of a host's memory
GIB = 2**30


def is_reused(config: FinetuneConfig, facts: Sequence[Batch]) -> bool:
    """Returns whether a run computes it once for each text.

    Were no text to come again, it would be computed for nothing.
    """
    again = config.steps * config.batch_size > len(facts)
    return config.reuse_prefix and config.optim.method == "smf" and again


def require_room(
    facts: Sequence[Batch], model: ModelConfig, placement: Placement
) -> float:
    """Returns the GiB that each process needs for what is kept of all texts.

    Raises:
      ConfigError: That is more than half of its host's memory.
    """
    width = np.dtype(placement.compute.activations).itemsize
    reads = model.memory.num_heads * model.memory.top_k
    of_token = model.dim * width + reads * (4 + 4)  # slots and weights
    needs = len(facts) * facts[0].tokens.size * of_token / GIB
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    require(
        needs <= MOST * has,
        f"reuse_prefix=True would keep {needs:.1f} GiB of outputs of {len(facts):,} "
        f"facts for each process on this host of {has:.1f} GiB: set it to False",
    )
    return needs


def with_prefixes(
    facts: Sequence[Batch],
    graph: nnx.GraphDef,
    params: tuple[PyTree, ...],
    at_once: int,
    console: Console,
) -> list[Batch]:
    """Returns the rows of each fact with the model's `Prefix` of them.

    Args:
      facts: The rows of each fact, as many of each.
      graph: The model's structure.
      params: Its parameters, in the parts that `graph` was split into.
      at_once: Facts computed together.
      console: Told of progress.
    """
    placement = nnx.merge(graph, *params).placement
    rows = len(facts[0].tokens)
    kept, told = [], 0
    starts = track(
        range(0, len(facts), at_once),
        "prefix",
        math.ceil(len(facts) / at_once),
        console=console,
        disable=not console.is_terminal,
    )
    for start in starts:
        distributed.working(f"what lies below the memory, from fact {start} on")
        if not console.is_terminal and start * PLAIN_LINES // len(facts) > told:
            told = start * PLAIN_LINES // len(facts)
            console.print(f"prefix {start}/{len(facts)}", highlight=False)
        some = facts[start : start + at_once]
        lacking = (at_once - len(some)) * rows  # filled up: one shape, one compilation
        batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *some)
        fill = [(0, lacking), (0, 0)]
        batch = jax.tree.map(lambda leaf, fill=fill: np.pad(leaf, fill), batch)
        prefix = _prefix(graph, params, placement.share(batch))
        prefix = jax.tree.map(np.asarray, prefix)
        for number, fact in enumerate(some):
            own = slice(number * rows, (number + 1) * rows)
            of_fact = jax.tree.map(lambda leaf, own=own: leaf[own].copy(), prefix)
            kept.append(fact._replace(prefix=of_fact))
    return kept


@functools.partial(jax.jit, static_argnames="graph")
def _prefix(graph, params, batch) -> Prefix:
    model = nnx.merge(graph, *params)
    prefix = model.prefix(batch.tokens, batch.positions, batch.segments)
    # Whole, as every host makes the batches of all.
    return jax.tree.map(model.placement.constrain, prefix)
