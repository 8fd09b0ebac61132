"""Work that processes share out among them."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from smf_jax import multihost

NAMES = ["a", "bb", "ccc", "d/é", "e"]


class Sent(Exception):
    """A process has come to the exchange."""


@pytest.fixture
def process(monkeypatch):
    """Returns a function that lets one of three processes work up to the exchange."""
    sent = []

    def up_to_exchange(me):
        def allgather(mine):
            sent.append(mine)
            raise Sent

        monkeypatch.setattr(jax, "process_count", lambda: 3)
        monkeypatch.setattr(jax, "process_index", lambda: me)
        monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
        return sent

    return up_to_exchange


def test_each_process_does_its_share_and_all_know_all(process, monkeypatch):
    done = []

    def work(name):
        done.append(name)
        return name.upper()

    for me in range(3):
        sent = process(me)
        with pytest.raises(Sent):
            multihost.split_work(work, NAMES)

    assert sorted(done) == NAMES
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda _: np.stack(sent))
    want = {name: name.upper() for name in NAMES}
    assert multihost.split_work(work, NAMES) == want


def test_a_single_process_does_all():
    assert multihost.split_work(str.upper, NAMES) == {n: n.upper() for n in NAMES}
