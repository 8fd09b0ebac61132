"""Work that the processes split."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from smf_jax import multihost

NAMES = ["a", "bb", "ccc", "d/é", "e"]
RESULTS = {name: name.upper() for name in NAMES}


class Sent(Exception):
    """A process has reached the exchange."""


def test_each_process_does_its_part_and_gets_all_results(monkeypatch):
    sent, done = [], []

    def send(rows):
        sent.append(rows)
        raise Sent

    def work(name):
        done.append(name)
        return name.upper()

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(multihost_utils, "process_allgather", send)
    for rank in range(3):
        monkeypatch.setattr(jax, "process_index", lambda rank=rank: rank)
        with pytest.raises(Sent):
            multihost.split_work(work, NAMES)

    assert sorted(done) == NAMES
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda _: np.stack(sent))
    assert multihost.split_work(work, NAMES) == RESULTS


def test_a_single_process_does_everything():
    assert multihost.split_work(str.upper, NAMES) == RESULTS
