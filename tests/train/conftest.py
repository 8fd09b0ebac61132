"""What tests of steps share."""

import pytest

from tests.compiled import configured, keep_in


@pytest.fixture(scope="package", autouse=True)
def one_compilation_of_each_program(tmp_path_factory):
    # Many tests make the same step anew, which jax takes for another function.
    folder = tmp_path_factory.getbasetemp() / "compiled-steps"
    with configured(keep_in(str(folder), least_seconds=0.1)):
        yield
