"""The probe, on the device at hand: a CPU."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from quantbench.gpus import load_gpus
from quantbench.keys import canonical_json

ROOT = Path(__file__).parents[1]
GPUS = load_gpus(ROOT / "config" / "gpus.yaml")


def run_probe(tmp_path, gpu):
    python = os.environ.get("QUANTBENCH_ENGINE_PYTHON")
    if not python:
        pytest.skip("QUANTBENCH_ENGINE_PYTHON is not set: no engine environment to test with")
    group = {"stage": "probe", "protocol": 1, "versions": {}, "params": [{}]}
    common = {"artefact": "point", "gpu": gpu, "epoch": 0}
    job = {"gpu": gpu, "model": None, "scheme": None, "gpu_entry": GPUS[gpu], "common": common, "groups": [group]}
    output = tmp_path / "probe.json"
    command = [python, ROOT / "workflow" / "scripts" / "probe_gpu.py", f"--job={canonical_json(job)}",
               f"--store={tmp_path / 'store'}", f"--output={output}"]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=300), output


@pytest.mark.engine
def test_a_cpu_is_measured_where_it_has_no_data_sheet(tmp_path):
    result, output = run_probe(tmp_path, "cpu")
    assert result.returncode == 0, result.stderr[-3000:]
    record = json.loads(output.read_text())
    assert record["capability"] is None and record["device_name"]
    # One slow channel of DDR3 to a large server; a laptop's core to a large server.
    assert 1e9 < record["bandwidth_bytes_per_s"] < 2e12
    assert 1e9 < record["matrix_flops_per_s"]["fp32"] < 1e14
    assert 1e9 < record["memory_bytes"] < 1e14
    # The store has the record: nothing is measured again.
    output.unlink()
    again, output = run_probe(tmp_path, "cpu")
    assert again.returncode == 0 and json.loads(output.read_text()) == record


@pytest.mark.engine
def test_the_wrong_device_is_refused(tmp_path):
    result, output = run_probe(tmp_path, "l40s")
    assert result.returncode == 2 and "NVIDIA L40S" in result.stderr and not output.exists()
