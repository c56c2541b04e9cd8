"""What a device multiplies natively, and what a CPU is by Linux's account: instruction sets, caches, clock. Pure."""

import os
from pathlib import Path

DTYPES = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4", "fp4", "fp6")
# The least compute capability on which torch multiplies a type in hardware; below it it computes in another, silently.
# fp16 at 7.0 and later are tensor cores (CUDA C++ programming guide, "Compute capabilities", tensor core data types).
LEAST_CAPABILITY = {"fp32": 0.0, "fp16": 7.0, "int8": 7.5, "tf32": 8.0, "bf16": 8.0, "fp8": 8.9, "fp4": 10.0}
# Instruction sets in which a CPU multiplies fp16; on others torch converts.
CPU_FP16 = {"avx512_fp16", "amx_fp16", "asimdhp"}

CPUINFO = Path("/proc/cpuinfo")
SYSTEM = Path("/sys/devices/system/cpu")
# Those that decide which matrix kernels there are: x86-64's names, then AArch64's.
ISA = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "amx_fp16", "asimd", "asimdhp", "asimddp", "sve", "sve2", "bf16", "i8mm",
)  # fmt: skip
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def multiplies(dtype, device_type, capability=None, isa=None):
    """Whether a device multiplies this type and torch has a product of it; others have no ceiling of their own.

    capability  CUDA compute capability as text, "9.0"
    isa         a CPU's instruction_sets; None: not known
    """
    if device_type == "cuda":
        return dtype in LEAST_CAPABILITY and float(capability) >= LEAST_CAPABILITY[dtype]
    if dtype == "fp16":
        return bool(CPU_FP16 & set(isa or ()))
    return dtype in ("fp32", "bf16", "int8")


def instruction_sets(cpuinfo=CPUINFO):
    """Those of ISA that the first processor has, in that order; None where the file does not tell."""
    try:
        lines = Path(cpuinfo).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            flags = set(value.split())
            return [flag for flag in ISA if flag in flags]
    return None


def cache_bytes(level, processors=None, system=SYSTEM):
    """Bytes of all caches of one level that these processors reach, each counted once; None where Linux does not tell.

    processors  numbers of the processors; those this process may use
    """
    caches = {}
    for processor in sorted(os.sched_getaffinity(0) if processors is None else processors):
        for cache in sorted((Path(system) / f"cpu{processor}" / "cache").glob("index*")):
            try:
                values = {
                    name: (cache / name).read_text().strip() for name in ("level", "type", "size", "shared_cpu_list")
                }
            except OSError:
                continue
            if values["level"] == str(level) and values["type"] != "Instruction":
                caches[values["shared_cpu_list"]] = _bytes(values["size"])
    return sum(caches.values()) or None


def max_clock_hz(system=SYSTEM):
    """Highest clock of the first processor; None where Linux does not tell, as in most virtual machines."""
    try:
        return int((Path(system) / "cpu0" / "cpufreq" / "cpuinfo_max_freq").read_text()) * 1000
    except (OSError, ValueError):
        return None


def _bytes(size):
    """1024K is 1048576."""
    return int(size[:-1]) * UNITS[size[-1]] if size[-1] in UNITS else int(size)
