"""What tests of the compilers for TPU and GPU need."""

import os

import pytest

from smf_jax.config import ConfigError
from smf_jax.plan.topology import find, require_compiler


@pytest.fixture(scope="module")
def compilers():
    """Skips (SMF_REQUIRE_PLAN=1: fails) without the extra `plan`; clears XLA_FLAGS."""
    try:
        require_compiler(*find("v5e-8"))
        require_compiler(*find("h100x8"))
    except ConfigError as error:
        if os.environ.get("SMF_REQUIRE_PLAN") == "1":
            raise
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        yield
