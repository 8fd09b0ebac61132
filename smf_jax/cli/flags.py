"""The flags that tell a process its rank, taken by every verb."""

from collections.abc import Sequence

from smf_jax.config import require

FLAGS = {  # with the variables that they override
    "--coordinator": "SMF_COORDINATOR",
    "--num-processes": "SMF_NUM_PROCESSES",
    "--process-id": "SMF_PROCESS_ID",
}


def take_flags(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Returns the variables that `FLAGS` set, and the other arguments.

    Raises:
      ConfigError: A flag has no value, or appears twice.
    """
    variables, others, rest = {}, [], list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag not in FLAGS:
            others.append(flag + equals + value)
            continue
        if not equals:
            require(bool(rest), f"{flag} has no value")
            value = rest.pop(0)
        name = FLAGS[flag]
        require(
            name not in variables,
            f"{flag} appears twice: {variables.get(name)}, {value}",
        )
        variables[name] = value
    return variables, others
