"""What tests of real compilers need; they are skipped, or fail, where it is missing."""

import os

import pytest

from smf_jax.config import ConfigError
from smf_jax.plan.topology import find, require_compiler


def require_compilers() -> None:
    """Skips the module that calls it where the extra `plan` is not installed.

    Raises:
      ConfigError: It is missing, and SMF_REQUIRE_PLAN=1 says that it must not be.
    """
    try:
        for name in ("v5e-8", "h100x8"):
            require_compiler(find(name))
    except ConfigError as error:
        if os.environ.get("SMF_REQUIRE_PLAN") == "1":
            raise
        pytest.skip(str(error), allow_module_level=True)
