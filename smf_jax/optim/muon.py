"""Muon, that takes matrices which are alike together."""

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, PyTree


def muon(
    learning_rate: optax.Schedule,
    weight_decay: float,
    decays: PyTree,
    adam_b2: float,
) -> optax.GradientTransformation:
    """Returns Muon for linear maps, and Adam with Nesterov momentum for all else.

    Muon turns matrices that map vectors to vectors. Embeddings, keys and values are
    rows that are looked up, most of them not in a step: those are Adam's.

    Source: `optax.contrib.muon`, of which it is the same rule.

    Args:
      learning_rate: Of both.
      weight_decay: Of linear maps.
      decays: A mask of what decays, or a function that makes one of parameters.
      adam_b2: How slowly Adam forgets squares.
    """
    of_maps = optax.chain(
        _all_alike(optax.contrib.scale_by_muon(weight_dimension_numbers=_stacked)),
        optax.stateless(lambda updates, _: jax.tree.map(_scale_by_width, updates)),
        optax.add_decayed_weights(weight_decay, decays),
        optax.scale_by_learning_rate(learning_rate),
    )
    others = optax.nadam(learning_rate, b2=adam_b2)
    return optax.partition({"muon": of_maps, "adam": others}, _labels)


def _labels(params: PyTree) -> PyTree:
    def label(path, leaf):
        is_map = leaf.ndim == 2 and getattr(path[-1], "key", None) == "kernel"
        return "muon" if is_map else "adam"

    return jax.tree.map_with_path(label, params)


def _scale_by_width(update: Array) -> Array:
    inputs, outputs = update.shape
    return max(1, outputs / inputs) ** 0.5 * update


def _all_alike(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Returns `scale_by_muon` as it is for single matrices, computed on stacks.

    A small matrix alone leaves most of a device idle, and each is more to compile.
    """

    def update(updates, state, params=None):
        del params
        leaves, structure = jax.tree.flatten_with_path(updates)
        groups = {}
        for place, (path, leaf) in enumerate(leaves):
            # Layers have their number in a path, and are split over devices alike.
            name = (*(key for key in path if not _is_number(key)), leaf.shape)
            groups.setdefault(name, []).append(place)

        def stack(tree):
            all_leaves = jax.tree.leaves(tree)
            return [
                jnp.stack([all_leaves[place] for place in places])
                for places in groups.values()
            ]

        def unstack(stacks):
            of_place = {}
            for places, stacked in zip(groups.values(), stacks, strict=True):
                of_place |= dict(zip(places, stacked, strict=True))
            return structure.unflatten([of_place[n] for n in range(len(leaves))])

        updates, after = inner.update(
            stack(updates), state._replace(mu=stack(state.mu))
        )
        return unstack(updates), after._replace(mu=unstack(after.mu))

    return optax.GradientTransformation(inner.init, update)


def _stacked(updates: PyTree) -> PyTree:
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(1, 2), updates)


def _is_number(key) -> bool:
    return isinstance(getattr(key, "key", None), int)
