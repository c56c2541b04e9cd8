"""Provenance of a run: which device it says it ran on, in which allocation."""

import time

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


# --- the allocation -------------------------------------------------------------------------------------------------

JOB = "JobId=42 JobName=x UserId=me(0) JobState=RUNNING StartTime=2026-01-01T10:00:00 Partition=h200 NodeList=h200n1 Reason=None\n"


def slurm_says(monkeypatch, text, **environment):
    for name in ("SLURM_JOB_ID", "SLURM_JOB_PARTITION", "SLURMD_NODENAME", "SLURM_JOB_START_TIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(command, **options):
        if text is None:
            raise FileNotFoundError(command[0])
        assert command == ["scontrol", "--oneliner", "show", "job", "42"]
        return provenance.subprocess.CompletedProcess(command, 0, stdout=text)

    monkeypatch.setattr(provenance.subprocess, "run", run)


def test_outside_of_slurm_there_is_no_allocation(monkeypatch):
    slurm_says(monkeypatch, None)
    assert set(provenance.allocation().values()) == {None}


def test_an_allocation_is_what_slurm_says_of_the_job(monkeypatch):
    slurm_says(monkeypatch, JOB, SLURM_JOB_ID="42")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        found = provenance.allocation()
    finally:
        monkeypatch.undo()
        time.tzset()
    # Slurm's times are local: ten o'clock in Berlin in winter
    assert found == {
        "slurm_job": "42", "slurm_partition": "h200", "slurm_node": "h200n1", "allocated_at": "2026-01-01T09:00:00+00:00",
    }  # fmt: skip


def test_the_steps_own_variables_come_first_and_silence_is_no_error(monkeypatch):
    slurm_says(monkeypatch, JOB, SLURM_JOB_ID="42", SLURMD_NODENAME="h200n2", SLURM_JOB_START_TIME="1767261600")
    # 1767261600 s after 1970 are 2026-01-01, 10:00 UTC
    found = provenance.allocation()
    assert found["slurm_node"] == "h200n2" and found["allocated_at"] == "2026-01-01T10:00:00+00:00"
    slurm_says(monkeypatch, None, SLURM_JOB_ID="42")
    assert provenance.allocation()["allocated_at"] is None
    slurm_says(monkeypatch, JOB.replace("2026-01-01T10:00:00", "Unknown"), SLURM_JOB_ID="42")
    assert provenance.allocation() == {
        "slurm_job": "42", "slurm_partition": "h200", "slurm_node": "h200n1", "allocated_at": None,
    }  # fmt: skip


def test_a_run_ends_with_its_peak_of_host_memory(monkeypatch):
    run = provenance.finish({"ended_at": None})
    # an interpreter with its modules, in bytes, not in Linux's KiB
    assert 10e6 < run["peak_memory_bytes"] < 100e9 and run["ended_at"]
