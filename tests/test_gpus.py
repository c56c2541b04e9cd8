"""Every number of the data sheets is bounded on both sides: a factor of ten, or a sparse rate, fails."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from quantbench.errors import UserError
from quantbench.gpus import check_device, load_gpus, numbers, source_of

PATH = Path(__file__).parents[1] / "config" / "gpus.yaml"
GPUS = load_gpus(PATH)
DTYPES = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4", "fp6", "fp4")
CUDA = sorted(set(GPUS) - {"cpu"})


def chip(capability, sms, hz, bus_bits, transfers_per_s, gb, l2_mb, fp32_hz=None, **per_clock):
    """A device in parts: clocks of tensor cores and (where another) of fp32, and operations per clock of one SM."""
    return SimpleNamespace(
        capability=capability,
        bandwidth=bus_bits * transfers_per_s / 8,
        memory=gb * 1e9,
        l2=l2_mb * 2**20,
        rates={
            dtype: sms * operations * (fp32_hz if dtype == "fp32" and fp32_hz else hz)
            for dtype, operations in per_clock.items()
        },
    )


# Operations per clock and SM, from the architecture whitepapers: two for each multiply-add. Tensor cores at full rate
# double them from fp16 to fp8 and int8, and again to 4 bit. GeForce cards sum floats in 32 bit at half rate; the A10G's
# tensor cores are halved for integers, too.
A10G = {"fp32": 256, "tf32": 256, "fp16": 512, "bf16": 512, "int8": 1024, "int4": 2048}
GEFORCE_AMPERE = A10G | {"int8": 2048, "int4": 4096}
GEFORCE_ADA = GEFORCE_AMPERE | {"fp8": 1024}
ADA = {"fp32": 256, "tf32": 512, "fp16": 1024, "bf16": 1024, "fp8": 2048, "int8": 2048}
HOPPER = {"fp32": 256, "tf32": 2048, "fp16": 4096, "bf16": 4096, "fp8": 8192, "int8": 8192}
GEFORCE_BLACKWELL = {"fp32": 256, "tf32": 256, "fp16": 512, "bf16": 512, "fp8": 1024, "int8": 2048}
AMPERE = {"fp32": 128, "tf32": 1024, "fp16": 2048, "bf16": 2048, "int8": 4096, "int4": 8192}
BLACKWELL = {"fp32": 256, "tf32": 4096, "fp16": 8192, "bf16": 8192, "fp8": 16384, "int8": 16384, "fp6": 16384}
CHIPS = {
    # 877.5 MHz, two transfers a clock; likewise the other HBM clocks
    "v100": chip("7.0", 80, 1.53e9, 4096, 1.755e9, 32, 6, fp32=128, fp16=1024),
    "v100-16gb": chip("7.0", 80, 1.53e9, 4096, 1.755e9, 16, 6, fp32=128, fp16=1024),
    "t4": chip("7.5", 40, 1.59e9, 256, 10e9, 16, 4, fp32=128, fp16=1024, int8=2048, int4=4096),
    "a10g": chip("8.6", 80, 1.71e9, 384, 12.5e9, 24, 6, **A10G),
    "a100": chip("8.0", 108, 1.41e9, 5120, 3.186e9, 80, 40, **AMPERE),
    "a100-pcie": chip("8.0", 108, 1.41e9, 5120, 3.024e9, 80, 40, **AMPERE),
    "l4": chip("8.9", 58, 2.04e9, 192, 12.5e9, 24, 48, **ADA, int4=4096),
    # its data sheet gives INT4 the rate of INT8
    "l40s": chip("8.9", 142, 2.52e9, 384, 18e9, 48, 96, **ADA, int4=2048),
    "rtx3090": chip("8.6", 82, 1.695e9, 384, 19.5e9, 24, 6, **GEFORCE_AMPERE),
    "rtx4090": chip("8.9", 128, 2.52e9, 384, 21e9, 24, 72, **GEFORCE_ADA),
    "rtx5090": chip("12.0", 170, 2.407e9, 512, 28e9, 32, 96, **GEFORCE_BLACKWELL, fp6=1024, fp4=4096),
    "h100": chip("9.0", 132, 1.83e9, 5120, 5.238e9, 80, 50, fp32_hz=1.98e9, **HOPPER),
    "h100-pcie": chip("9.0", 114, 1.62e9, 5120, 3.186e9, 80, 50, fp32_hz=1.755e9, **HOPPER),
    "h200": chip("9.0", 132, 1.83e9, 6144, 6.402e9, 141, 60, fp32_hz=1.98e9, **HOPPER),
    # 7680 of its 8192 bits are in use; 148 x 16384 x 1.85 GHz = 4.49e15
    "b200": chip("10.0", 148, 1.85e9, 7680, 7.992e9, 180, 126.5, fp32_hz=1.965e9, **BLACKWELL, fp4=32768),
}


def test_the_devices_are_all_there():
    assert set(GPUS) == {*CHIPS, "cpu"}


@pytest.mark.parametrize("gpu", CUDA)
def test_every_number_is_what_its_parts_add_up_to(gpu):
    entry, parts = GPUS[gpu], CHIPS[gpu]
    assert entry["compute_capability"] == parts.capability
    assert entry["memory_bytes"] == parts.memory
    assert entry["l2_bytes"] == parts.l2
    assert entry["memory_bandwidth_bytes_per_s"] == pytest.approx(parts.bandwidth, rel=0.03)
    # NVIDIA rounds, and boosts, each figure on its own: 3 %. A format that has no rate here has none there.
    rates = {dtype: rate for dtype, rate in entry["matrix_flops_per_s"].items() if rate is not None}
    assert rates == pytest.approx(parts.rates, rel=0.03)


def ratios(over, under):
    """{gpu: rate of one format / rate of another} where a device has both."""
    rates = {gpu: GPUS[gpu]["matrix_flops_per_s"] for gpu in CUDA}
    return {gpu: r[over] / r[under] for gpu, r in rates.items() if r[over] and r[under]}


def test_half_the_bits_double_the_rate():
    about = {"rel": 0.03}
    # Sums of floats in 32 bit run at half rate on GeForce cards, sums of integers do not: int8 = 4 x bf16 there.
    geforce = {"rtx3090", "rtx4090", "rtx5090"}
    assert set(ratios("fp16", "bf16").values()) == {1.0}
    assert ratios("bf16", "tf32") == pytest.approx(dict.fromkeys(ratios("bf16", "tf32"), 2), **about)
    fp8 = ratios("fp8", "bf16")
    assert set(fp8) == {"l4", "l40s", "rtx4090", "rtx5090", "h100", "h100-pcie", "h200", "b200"}
    assert fp8 == pytest.approx(dict.fromkeys(fp8, 2), **about)
    int8 = ratios("int8", "fp16")
    assert set(int8) == set(CUDA) - {"v100", "v100-16gb"}
    assert int8 == pytest.approx({gpu: 4 if gpu in geforce else 2 for gpu in int8}, **about)
    assert ratios("int4", "int8") == pytest.approx(
        {"t4": 2, "a10g": 2, "a100": 2, "a100-pcie": 2, "l4": 2, "l40s": 1, "rtx3090": 2, "rtx4090": 2}, **about
    )
    # FP4 is summed at full rate on both Blackwells.
    assert ratios("fp4", "fp8") == pytest.approx({"rtx5090": 4, "b200": 2}, **about)
    assert ratios("fp6", "fp8") == {"rtx5090": 1, "b200": 1}


def test_a_format_has_a_rate_from_the_generation_on_that_multiplies_it():
    def capable(dtype):
        return {float(GPUS[gpu]["compute_capability"]) for gpu in CUDA if GPUS[gpu]["matrix_flops_per_s"][dtype]}

    assert capable("fp32") == capable("fp16") == {7.0, 7.5, 8.0, 8.6, 8.9, 9.0, 10.0, 12.0}
    assert capable("bf16") == capable("tf32") == {8.0, 8.6, 8.9, 9.0, 10.0, 12.0}
    assert capable("int8") == {7.5, 8.0, 8.6, 8.9, 9.0, 10.0, 12.0}
    assert capable("int4") == {7.5, 8.0, 8.6, 8.9}  # Hopper gave it up
    assert capable("fp8") == {8.9, 9.0, 10.0, 12.0}
    assert capable("fp6") == capable("fp4") == {10.0, 12.0}


@pytest.mark.parametrize("gpu", CUDA)
def test_a_sparse_rate_is_twice_the_dense_one(gpu):
    dense, sparse = GPUS[gpu]["matrix_flops_per_s"], GPUS[gpu]["sparse_flops_per_s"]
    # Sold so from Ampere on, for every format of the tensor cores; no sheet has INT4 of the L4 or FP6 of the 5090.
    expected = {dtype for dtype in DTYPES if dense[dtype] and dtype != "fp32"}
    expected -= {"l4": {"int4"}, "rtx5090": {"fp6"}}.get(gpu, set())
    assert set(sparse) == (expected if float(GPUS[gpu]["compute_capability"]) >= 8 else set())
    assert sparse == pytest.approx({dtype: 2 * dense[dtype] for dtype in sparse}, rel=0.03)


def test_h200_is_an_h100_with_more_memory():
    for rates in ("matrix_flops_per_s", "sparse_flops_per_s"):
        assert GPUS["h200"][rates] == GPUS["h100"][rates]
    # 4.8 / 3.35 = 1.43
    ratio = GPUS["h200"]["memory_bandwidth_bytes_per_s"] / GPUS["h100"]["memory_bandwidth_bytes_per_s"]
    assert ratio == pytest.approx(1.43, abs=0.01)
    assert GPUS["a100"]["matrix_flops_per_s"] == GPUS["a100-pcie"]["matrix_flops_per_s"]


def test_a_cpu_has_no_data_sheet():
    entry = GPUS["cpu"]
    assert numbers(entry) == {}
    assert entry["matrix_flops_per_s"] == dict.fromkeys(DTYPES)
    assert entry["environment"] == "engine-cpu"


# What nvidia-smi prints, and the one entry it belongs to; None: a cousin, which no entry may claim.
NAMES = {
    "Tesla V100-SXM2-32GB": "v100",
    "Tesla V100-SXM2-16GB": "v100-16gb",
    "Tesla V100-SXM2-32GB-LS": None,  # clocked lower
    "Tesla V100-SXM3-32GB": None,
    "Tesla V100-PCIE-32GB": None,
    "Tesla V100S-PCIE-32GB": None,
    "Tesla T4": "t4",
    "NVIDIA T4": "t4",
    "NVIDIA T4G": None,
    "NVIDIA A10G": "a10g",
    "NVIDIA A10": None,
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100-SXM4-40GB": None,
    "NVIDIA A100-SXM4-80GB MIG 1g.10gb": None,
    "NVIDIA A100 80GB PCIe": "a100-pcie",
    "NVIDIA A100-PCIE-40GB": None,
    "NVIDIA A100X": None,
    "NVIDIA A800-SXM4-80GB": None,
    "NVIDIA L4": "l4",
    "NVIDIA L40": None,
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 3090": "rtx3090",
    "NVIDIA GeForce RTX 3090 Ti": None,
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA GeForce RTX 4090 D": None,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "NVIDIA GeForce RTX 5090": "rtx5090",
    "NVIDIA GeForce RTX 5090 D": None,
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": None,
    "NVIDIA GH200 480GB": None,
    "NVIDIA H20": None,
    "NVIDIA H200": "h200",
    "NVIDIA H200 NVL": None,
    "NVIDIA H200 MIG 1g.18gb": None,
    "NVIDIA B200": "b200",
    "NVIDIA GB200": None,
    "NVIDIA B300 SXM6 AC": None,
    "AMD EPYC 9B14, 2 cores": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_fits_its_own_entry_only(name):
    def fits(gpu):
        try:
            check_device(GPUS[gpu], name)
        except UserError as error:
            assert name in str(error) and GPUS[gpu]["description"] in str(error) and "right device" in str(error)
            return False
        return True

    assert [gpu for gpu in CUDA if fits(gpu)] == ([NAMES[name]] if NAMES[name] else [])
    assert fits("cpu")  # any name: a CPU has no product to match


def test_every_entry_has_a_name_that_is_tried():
    assert {gpu for gpu in NAMES.values() if gpu} == set(CUDA)


@pytest.mark.parametrize("gpu", CUDA)
def test_every_number_has_a_source_with_an_address(gpu):
    for field in numbers(GPUS[gpu]):
        assert re.search(r"https://\S+\.\S+$", source_of(GPUS[gpu], field)), field
    # no citation that no number needs
    assert set(GPUS[gpu]["source_of"].values()) == set(GPUS[gpu]["sources"])


def test_a_rate_may_have_another_source_than_its_group():
    assert "derived" in source_of(GPUS["l4"], "matrix_flops_per_s.int4")
    assert "datasheet" in source_of(GPUS["l4"], "matrix_flops_per_s.fp8")


def test_price_and_epoch_are_each_entrys_own():
    """An entry that takes another's values must not take what the user sets for one device."""
    entries = re.split(r"\n(?=[a-z0-9-]+:)", PATH.read_text())[1:]
    assert len(entries) == len(GPUS)
    for entry in entries:
        assert entry.count("\n  epoch: 0") == entry.count("\n  price_usd_per_hour: null") == 1, entry


def written(tmp_path, **change):
    path = tmp_path / "gpus.yaml"
    path.write_text(yaml.safe_dump({"h200": {**GPUS["h200"], **change}}, sort_keys=False))
    return path


def without(field):
    return {key: source for key, source in GPUS["h200"]["source_of"].items() if key != field}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"memory_bandwith_bytes_per_s": 1.0}, ["h200", "'memory_bandwith_bytes", "'memory_bandwidth_bytes_per_s'"]),
        ({"memory_bandwidth_bytes_per_s": "4.8e12"}, ["h200.memory_bandwidth_bytes_per_s", "text", "4.8e+12"]),
        ({"memory_bytes": -1}, ["h200.memory_bytes"]),
        ({"name_patterns": ["("]}, ["h200.name_patterns.0"]),
        ({"environment": "engine"}, ["h200.environment", "engine-cuda"]),
        ({"sparse_flops_per_s": {"fp9": 1.0}}, ["h200.sparse_flops_per_s", "'fp9'", "'fp"]),
        ({"price_usd_per_hour": -2}, ["h200.price_usd_per_hour"]),
        ({"source_of": without("l2_bytes")}, ["h200.l2_bytes has no source", "h200.source_of"]),
        ({"source_of": without("matrix_flops_per_s")}, ["h200.matrix_flops_per_s.tf32 has no source"]),
        ({"source_of": without("") | {"l2_byte": "driver"}}, ["h200.source_of", "'l2_byte'", "'l2_bytes'"]),
        ({"source_of": without("") | {"l2_bytes": "rumour"}}, ["h200.source_of.l2_bytes", "'rumour'", "datasheet"]),
    ],
)
def test_a_bad_entry_is_refused_by_name(tmp_path, change, words):
    path = written(tmp_path, **change)
    with pytest.raises(UserError) as error:
        load_gpus(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_a_price_needs_no_source(tmp_path):
    assert load_gpus(written(tmp_path, price_usd_per_hour=3.5))["h200"]["price_usd_per_hour"] == 3.5


def test_a_float_without_the_sign_is_text_to_yaml(tmp_path):
    path = tmp_path / "gpus.yaml"
    path.write_text(PATH.read_text().replace("4.8e+12", "4.8e12"))
    with pytest.raises(UserError, match="text, not a number"):
        load_gpus(path)


def test_a_missing_file_and_a_broken_one_are_named(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        load_gpus(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("h200: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_gpus(tmp_path / "broken.yaml")
