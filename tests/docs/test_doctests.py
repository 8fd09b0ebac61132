"""The examples in docstrings of public names give what they say."""

import doctest
import importlib

import pytest

import smf_jax

MODULES = sorted({*smf_jax._PUBLIC.values(), *smf_jax._MODULES.values()})
WITH_EXAMPLES = {
    *("kernels.product_key", "kernels.row_sums", "optim.rows"),
    *("slots.patch", "slots.select"),
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_public_module_give_what_they_say(name):
    module = importlib.import_module(f"smf_jax.{name}")

    failed, attempted = doctest.testmod(module)

    assert failed == 0
    assert (attempted > 0) == (name in WITH_EXAMPLES)
