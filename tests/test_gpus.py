"""Every number of the data sheets is bounded on both sides: a factor of ten, or a sparse rate, fails."""

from pathlib import Path

import pytest
import yaml
from quantbench.errors import UserError
from quantbench.gpus import check_device, load_gpus

PATH = Path(__file__).parents[1] / "config" / "gpus.yaml"
GPUS = load_gpus(PATH)
DTYPES = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8")

# From the memory's own arithmetic: bus width in bits x transfers per second / 8, and the stacks' sizes.
# H200 6144 bit x 6.25 GT/s = 4.8 TB/s; H100 5120 x 5.23; A100 5120 x 3.19; L40S 384 x 18.
MEMORY = {
    "h200": (141e9, 6144 * 6.25e9 / 8),
    "h100": (80e9, 5120 * 5.23e9 / 8),
    "a100": (80e9, 5120 * 3.186e9 / 8),
    "l40s": (48e9, 384 * 18e9 / 8),
}
# Dense bf16 = tensor cores x multiply-adds per clock x 2 x boost clock.
# H100 528 x 512 x 2 x 1.83 GHz; A100 432 x 256 x 2 x 1.41; L40S 568 x 128 x 2 x 2.49.
BF16 = {
    "h200": 528 * 512 * 2 * 1.83e9,
    "h100": 528 * 512 * 2 * 1.83e9,
    "a100": 432 * 256 * 2 * 1.41e9,
    "l40s": 568 * 128 * 2 * 2.49e9,
}
# fp32 = CUDA cores x 2 x boost clock.
FP32 = {"h200": 16896 * 2 * 1.98e9, "h100": 16896 * 2 * 1.98e9, "a100": 6912 * 2 * 1.41e9, "l40s": 18176 * 2 * 2.52e9}
CAPABILITY = {"h200": "9.0", "h100": "9.0", "a100": "8.0", "l40s": "8.9", "cpu": None}


def test_devices_are_all_there():
    assert set(GPUS) >= {"h200", "h100", "a100", "l40s", "cpu"}
    assert {name: GPUS[name]["compute_capability"] for name in CAPABILITY} == CAPABILITY


@pytest.mark.parametrize("gpu", MEMORY)
def test_memory_is_what_its_parts_add_up_to(gpu):
    size, bandwidth = MEMORY[gpu]
    assert GPUS[gpu]["memory_bytes"] == pytest.approx(size, rel=0.02)
    assert GPUS[gpu]["memory_bandwidth_bytes_per_s"] == pytest.approx(bandwidth, rel=0.02)


@pytest.mark.parametrize("gpu", BF16)
def test_rates_are_what_the_cores_add_up_to(gpu):
    rates = GPUS[gpu]["matrix_flops_per_s"]
    assert rates["bf16"] == pytest.approx(BF16[gpu], rel=0.02)
    assert rates["fp32"] == pytest.approx(FP32[gpu], rel=0.02)
    # On tensor cores each halving of the operands' width doubles the rate; NVIDIA rounds each figure on its own.
    assert rates["fp16"] == rates["bf16"]
    assert rates["tf32"] == pytest.approx(rates["bf16"] / 2, rel=0.02)
    assert rates["int8"] == pytest.approx(rates["bf16"] * 2, rel=0.02)


@pytest.mark.parametrize("gpu", ["h100", "h200", "l40s"])
def test_fp8_is_twice_bf16(gpu):
    rates = GPUS[gpu]["matrix_flops_per_s"]
    assert rates["fp8"] == pytest.approx(2 * rates["bf16"], rel=0.02)


def test_ampere_has_no_fp8():
    assert GPUS["a100"]["matrix_flops_per_s"]["fp8"] is None


def test_h200_is_an_h100_with_more_memory():
    assert GPUS["h200"]["matrix_flops_per_s"] == GPUS["h100"]["matrix_flops_per_s"]
    # 4.8 / 3.35 = 1.43
    ratio = GPUS["h200"]["memory_bandwidth_bytes_per_s"] / GPUS["h100"]["memory_bandwidth_bytes_per_s"]
    assert ratio == pytest.approx(1.43, abs=0.01)


def test_a_cpu_has_no_data_sheet():
    entry = GPUS["cpu"]
    assert entry["memory_bytes"] is None and entry["memory_bandwidth_bytes_per_s"] is None
    assert entry["matrix_flops_per_s"] == dict.fromkeys(DTYPES)
    assert entry["environment"] == "engine-cpu"


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("h200", "NVIDIA H200"),
        ("h100", "NVIDIA H100 80GB HBM3"),
        ("a100", "NVIDIA A100-SXM4-80GB"),
        ("l40s", "NVIDIA L40S"),
        ("cpu", "AMD EPYC, 2 cores"),
    ],
)
def test_a_device_fits_its_own_entry_only(gpu, name):
    check_device(GPUS[gpu], name)
    for other in set(MEMORY) - {gpu}:
        with pytest.raises(UserError, match="right device"):
            check_device(GPUS[other], name)


COUSINS = ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GH200 480GB", "NVIDIA H200 MIG 1g.18gb"]


@pytest.mark.parametrize("name", COUSINS)
def test_a_cousin_is_not_the_device(name):
    for gpu in ("h100", "h200"):
        with pytest.raises(UserError) as error:
            check_device(GPUS[gpu], name)
        assert name in str(error.value) and GPUS[gpu]["description"] in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"memory_bandwith_bytes_per_s": 1.0}, ["h200", "'memory_bandwith_bytes", "'memory_bandwidth_bytes_per_s'"]),
        ({"memory_bandwidth_bytes_per_s": "4.8e12"}, ["h200.memory_bandwidth_bytes_per_s", "text", "4.8e+12"]),
        ({"memory_bytes": -1}, ["h200.memory_bytes"]),
        ({"name_patterns": ["("]}, ["h200.name_patterns.0"]),
        ({"environment": "engine"}, ["h200.environment", "engine-cuda"]),
    ],
)
def test_a_bad_entry_is_refused_by_name(tmp_path, change, words):
    path = tmp_path / "gpus.yaml"
    path.write_text(yaml.safe_dump({"h200": {**GPUS["h200"], **change}}))
    with pytest.raises(UserError) as error:
        load_gpus(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_a_float_without_the_sign_is_text_to_yaml(tmp_path):
    path = tmp_path / "gpus.yaml"
    path.write_text(PATH.read_text().replace("4.8e+12", "4.8e12", 2))
    with pytest.raises(UserError, match="text, not a number"):
        load_gpus(path)


def test_a_missing_file_and_a_broken_one_are_named(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        load_gpus(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("h200: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_gpus(tmp_path / "broken.yaml")
