"""What a device multiplies, and what Linux tells of a CPU."""

import pytest
from quantbench.hardware import DTYPES, cache_bytes, instruction_sets, max_clock_hz, multiplies


@pytest.mark.parametrize(
    "device_type, capability, isa, dtypes",
    [
        ("cuda", "7.0", None, {"fp32", "fp16"}),
        ("cuda", "7.5", None, {"fp32", "fp16", "int8"}),
        ("cuda", "8.6", None, {"fp32", "tf32", "fp16", "bf16", "int8"}),
        ("cuda", "9.0", None, {"fp32", "tf32", "fp16", "bf16", "int8", "fp8"}),
        ("cuda", "12.0", None, {"fp32", "tf32", "fp16", "bf16", "int8", "fp8", "fp4"}),
        ("cpu", None, ["avx2"], {"fp32", "bf16", "int8"}),
        ("cpu", None, ["avx2", "avx512_fp16"], {"fp32", "bf16", "int8", "fp16"}),
        ("cpu", None, None, {"fp32", "bf16", "int8"}),
    ],
)
def test_a_type_has_a_ceiling_where_the_hardware_multiplies_it(device_type, capability, isa, dtypes):
    assert {dtype for dtype in DTYPES if multiplies(dtype, device_type, capability, isa)} == dtypes


def test_instruction_sets_are_those_that_kernels_choose_by(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu amx_bf16 avx2 avx512f sse2\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert instruction_sets(cpuinfo) == ["avx2", "avx512f", "amx_bf16"]
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n")
    assert instruction_sets(cpuinfo) == ["asimd", "bf16", "i8mm"]
    assert instruction_sets(tmp_path / "absent") is None


def test_a_cache_that_processors_share_counts_once(tmp_path):
    def cache(processor, index, **values):
        folder = tmp_path / f"cpu{processor}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, value in values.items():
            (folder / name).write_text(f"{value}\n")

    # four processors, 1 MiB of L2 each, 32 MiB of L3 for every two
    for processor, pair in enumerate(("0-1", "0-1", "2-3", "2-3")):
        cache(processor, 2, level=2, type="Unified", size="1024K", shared_cpu_list=processor)
        cache(processor, 3, level=3, type="Unified", size="32M", shared_cpu_list=pair)
        cache(processor, 1, level=1, type="Instruction", size="32K", shared_cpu_list=processor)
    assert cache_bytes(2, range(4), tmp_path) == 4 << 20
    assert cache_bytes(3, range(4), tmp_path) == 64 << 20
    assert cache_bytes(3, [0, 1], tmp_path) == 32 << 20
    assert cache_bytes(1, range(4), tmp_path) is None


def test_the_clock_is_in_hertz(tmp_path):
    assert max_clock_hz(tmp_path) is None
    folder = tmp_path / "cpu0" / "cpufreq"
    folder.mkdir(parents=True)
    (folder / "cpuinfo_max_freq").write_text("3500000\n")
    assert max_clock_hz(tmp_path) == 3_500_000_000
