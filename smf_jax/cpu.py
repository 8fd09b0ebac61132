"""What the CPU of this machine is good at."""

import functools
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # of Linux


@functools.cache
def has_amx() -> bool:
    """Returns whether the CPU multiplies whole matrices of bfloat16 (Intel AMX).

    With instructions for vectors of bfloat16 alone (AVX512-BF16), float32 is faster.
    """
    if not CPUINFO.is_file():
        return False
    lines = CPUINFO.read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return "amx_bf16" in flags.split()
