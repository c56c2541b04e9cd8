"""The probe, on the device at hand: a CPU, and a GPU where there is one."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from quantbench.device_state import visible_device
from quantbench.gpus import load_gpus
from quantbench.keys import canonical_json

ROOT = Path(__file__).parents[1]
GPUS = load_gpus(ROOT / "config" / "gpus.yaml")


@pytest.fixture
def run_probe(engine_python, tmp_path):
    def run(gpu):
        group = {"stage": "probe", "protocol": 2, "versions": {}, "params": [{}]}
        common = {"artefact": "point", "gpu": gpu, "epoch": 0}
        job = {"gpu": gpu, "model": None, "scheme": None, "gpu_entry": GPUS[gpu], "common": common, "groups": [group]}
        output = tmp_path / "probe.json"
        command = [engine_python, ROOT / "workflow" / "scripts" / "probe_gpu.py", f"--job={canonical_json(job)}",
                   f"--store={tmp_path / 'store'}", f"--output={output}"]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=300), output

    return run


@pytest.mark.engine
def test_a_cpu_is_measured_where_it_has_no_data_sheet(run_probe):
    result, output = run_probe("cpu")
    assert result.returncode == 0, result.stderr[-3000:]
    record = json.loads(output.read_text())
    assert record["capability"] is None and record["device_name"]
    # One slow channel of DDR3 to a large server; a laptop's core to a large server.
    assert 1e9 < record["bandwidth_bytes_per_s"] < 2e12
    assert 1e9 < record["matrix_flops_per_s"]["fp32"] < 1e14
    assert 1e9 < record["memory_bytes"] < 1e14
    rates = record["matrix_flops_per_s"]
    # An 8-bit product is never slower than the same in 32 bits; types that torch does not multiply here are null.
    assert rates["int8"] > rates["fp32"] and rates["fp8"] is rates["int4"] is rates["fp4"] is rates["fp6"] is None
    assert record["bandwidth_bytes_per_s"] == max(record["bandwidths_bytes_per_s"].values())
    assert record["threads"] == len(os.sched_getaffinity(0)) and record["isa"]
    # What only a GPU has.
    assert record["power_limit_w"] is record["sm_clock_hz"] is record["ecc"] is record["other_processes"] is None
    # The store has the record: nothing is measured again.
    output.unlink()
    again, output = run_probe("cpu")
    assert again.returncode == 0 and json.loads(output.read_text()) == record


@pytest.mark.engine
def test_the_wrong_device_is_refused(run_probe):
    result, output = run_probe("l40s")
    assert result.returncode == 2 and "NVIDIA L40S" in result.stderr and not output.exists()


@pytest.mark.gpu
def test_a_gpu_reaches_most_of_its_data_sheet_and_no_more(run_probe):
    name = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "-i", visible_device() or "0"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    gpus = [gpu for gpu, entry in GPUS.items() if any(re.fullmatch(p, name) for p in entry["name_patterns"])]
    [gpu] = [gpu for gpu in gpus if gpu != "cpu"]
    result, output = run_probe(gpu)
    assert result.returncode == 0, result.stderr[-3000:]
    record, entry = json.loads(output.read_text()), GPUS[gpu]
    shares = {"bandwidth": record["bandwidth_bytes_per_s"] / entry["memory_bandwidth_bytes_per_s"]}
    for dtype in ("bf16", "fp8"):
        if entry["matrix_flops_per_s"][dtype]:
            shares[dtype] = record["matrix_flops_per_s"][dtype] / entry["matrix_flops_per_s"][dtype]
    assert all(0.70 < share < 1.05 for share in shares.values()), shares
    assert record["capability"] == entry["compute_capability"]
    assert record["l2_bytes"] > 1e6 and record["cuda_version"] and record["other_processes"] is not None
    # Sampled at work: an idling device's clock is a small part of its highest.
    assert 0.3 * record["max_sm_clock_hz"] < record["sm_clock_hz"] <= record["max_sm_clock_hz"]
    assert 0 < record["power_w"] < 1.2 * record["power_limit_w"] and 10 < record["temperature_c"] < 100
    assert "idle" not in record["throttle_reasons"]
