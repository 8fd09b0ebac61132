"""The flags that tell a process its rank."""

import pytest

from smf_jax.cli.flags import take_flags
from smf_jax.config import ConfigError


def test_flags_are_taken_from_any_position():
    argv = ["--coordinator=a:1", "pretrain", "--num-processes", "2", "c.py"]
    argv += ["--process-id", "0", "--steps=3"]

    variables, others = take_flags(argv)

    assert variables == {
        "SMF_COORDINATOR": "a:1",
        "SMF_NUM_PROCESSES": "2",
        "SMF_PROCESS_ID": "0",
    }
    assert others == ["pretrain", "c.py", "--steps=3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--process-id"], "--process-id has no value"),
        (["--process-id=1", "--process-id=2"], "--process-id appears twice: 1, 2"),
    ],
)
def test_a_flag_without_a_value_or_given_twice_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        take_flags(arguments)
