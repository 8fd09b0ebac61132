"""What is planned is compiled as it is for users."""

import pytest


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
    """Takes away what tests of other rooms save time by."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
