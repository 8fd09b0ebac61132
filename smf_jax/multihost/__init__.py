"""Several processes as one program."""

from smf_jax.multihost.collectives import (
    barrier,
    blame_lost_process,
    busy,
    initialize,
    is_main,
    preempted,
    reached,
    require_same,
    shut_down,
    split_work,
)

__all__ = [
    "barrier",
    "blame_lost_process",
    "busy",
    "initialize",
    "is_main",
    "preempted",
    "reached",
    "require_same",
    "shut_down",
    "split_work",
]
