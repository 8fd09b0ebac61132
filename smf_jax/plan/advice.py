"""What to change of a run whose step does not fit."""

from collections.abc import Iterator

from smf_jax.config import FinetuneConfig, PretrainConfig, RetrofitConfig
from smf_jax.plan.outcome import Outcome
from smf_jax.plan.topology import Topology, gpu_fraction, larger
from smf_jax.plan.words import name_devices

MUCH = 0.3  # of a device's memory: of a part that is worth making smaller
Config = PretrainConfig | RetrofitConfig | FinetuneConfig


def what_to_change(
    outcome: Outcome, topology: Topology, config: Config
) -> Iterator[str]:
    """Yields what would make a step smaller, the first thing to try first.

    What is large, arguments of the step or what it computes, comes first.
    """
    held = sum((outcome.groups or {}).values())
    rest = None if outcome.needs is None else outcome.needs - held
    if rest is None or rest > MUCH * topology.memory:
        yield from _smaller_activations(config)
    if held > MUCH * topology.memory:
        yield from _more_ways(outcome, topology, config)
    if topology.platform == "cuda" and gpu_fraction() < 0.9:
        whole = topology.memory / gpu_fraction() / 2**30
        yield (
            f"XLA_PYTHON_CLIENT_MEM_FRACTION=0.92: jax takes {gpu_fraction():.0%} of "
            f"the {whole:.1f} GiB of a GPU"
        )
    if (next_ := larger(topology)) is not None:
        yield f"--topology {next_.name}: the next larger one, {name_devices(next_)}"


def _smaller_activations(config: Config) -> Iterator[str]:
    if not config.compute.remat:
        yield "--compute.remat: compute blocks again instead of keeping them"
    if config.compute.activations == "float32":
        yield "--compute.activations bfloat16: half the bytes of activations"
    batch, flag = _batch(config)
    parts = config.grad_accum_steps * 2
    if batch % parts == 0:
        yield f"--grad_accum_steps {parts}: the batch of {batch} in more parts"
    yield f"--{flag} {max(batch // 2, 1)}: a smaller batch"


def _more_ways(outcome: Outcome, topology: Topology, config: Config) -> Iterator[str]:
    groups, mesh = outcome.groups, outcome.mesh
    of_values = groups.get("memory values", 0)
    if of_values == max(groups.values()):
        if mesh["values"] != "everywhere" and topology.devices > mesh["model"]:
            yield "--mesh.values everywhere: all devices share the slots of a table"
        if (slots := _slots_flag(config)) is not None:
            flag, num_keys = slots
            yield f"--{flag} {num_keys // 2}: a quarter of the slots"
    share = topology.devices // mesh["model"]
    if mesh["fsdp"] < share:
        yield (
            f"--mesh.fsdp {share} --mesh.data 1: parameters and optimizer split over "
            f"{share} devices"
        )
    elif mesh["model"] < topology.devices:
        yield f"--mesh.model {mesh['model'] * 2}: layers split over more devices"


def _batch(config: Config) -> tuple[int, str]:
    if isinstance(config, FinetuneConfig):
        return config.batch_size, "batch-size"
    return config.data.batch_size, "data.batch-size"


def _slots_flag(config: Config) -> tuple[str, int] | None:
    match config:
        case RetrofitConfig():
            return "memory.num-keys", config.memory.num_keys
        case PretrainConfig() if config.model.memory is not None:
            return "model.memory.num-keys", config.model.memory.num_keys
    return None
