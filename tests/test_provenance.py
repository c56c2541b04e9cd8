"""Provenance of a run: which device it says it ran on."""

import pytest
from quantbench import provenance
from quantbench.errors import UserError
from quantbench.gpus import check_device

CPU = {"environment": "engine-cpu", "name_patterns": [".*"]}
H200 = {"environment": "engine-cuda", "name_patterns": ["NVIDIA H200"], "description": "NVIDIA H200"}
LINE = "NVIDIA H200, GPU-1111aaaa-0000, 580.95.05, 1980, 3201, 700.00, {mig}\n"


def answering(monkeypatch, line):
    """nvidia-smi says this line; the command that was asked is kept."""
    asked = []

    def run(command, **options):
        if command[0] == "nvidia-smi":
            asked.append(command)
        return provenance.subprocess.CompletedProcess(command, 0, stdout=line)

    monkeypatch.setattr(provenance.subprocess, "run", run)
    return asked


def test_a_line_of_nvidia_smi_is_a_device():
    assert provenance.parse_device(LINE.format(mig="Disabled")) == {
        "device_name": "NVIDIA H200", "device_uuid": "GPU-1111aaaa-0000", "driver": "580.95.05",
        "clocks": "sm 1980 MHz, memory 3201 MHz", "power_limit_w": 700.0,
    }  # fmt: skip
    # a consumer's card has no MIG, a laptop's no power limit
    other = provenance.parse_device(LINE.format(mig="[N/A]").replace("700.00", "[N/A]"))
    assert other["device_name"] == "NVIDIA H200" and other["power_limit_w"] is None


def test_a_slice_of_a_gpu_is_not_taken_for_the_gpu(monkeypatch):
    answering(monkeypatch, LINE.format(mig="Enabled"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match="'NVIDIA H200 MIG'.*NVIDIA H200"):
        check_device(H200, provenance.device(H200)["device_name"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    with pytest.raises(UserError, match="MIG-1234"):
        check_device(H200, provenance.device(H200)["device_name"])


def test_the_device_asked_about_is_the_one_that_cuda_shows(monkeypatch):
    asked = answering(monkeypatch, LINE.format(mig="Disabled"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1111aaaa-0000,GPU-2222bbbb-0000")
    assert provenance.device(H200)["device_uuid"] == "GPU-1111aaaa-0000"
    assert asked[0][-2:] == ["-i", "GPU-1111aaaa-0000"]


@pytest.mark.parametrize("entry, visible", [(CPU, "0"), (H200, "")])
def test_a_cpu_beside_a_gpu_is_a_cpu(monkeypatch, entry, visible):
    asked = answering(monkeypatch, LINE.format(mig="Disabled"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert provenance.device(entry)["device_name"] == provenance.cpu_name() and asked == []
