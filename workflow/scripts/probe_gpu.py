"""What the device is and the most it can do: rule probe_gpu.

Checks that the device is the one the job claims, asks the driver and the system what it is, then measures its ceilings:
memory bandwidth by large copies, sums and reads, and the rate of matrix products per number format (gemm/ceilings.py).
Writes the record to --output.
"""

import os
import time

from quantbench import hardware
from quantbench.device_state import FIELDS, DeviceState
from quantbench.engine.settings import engine_environment
from quantbench.errors import UserError
from quantbench.gpus import check_device
from quantbench.jobs import job_options
from quantbench.keys import canonical_json
from quantbench.points import check_versions, expand
from quantbench.progress import Progress
from quantbench.provenance import finish, new_run
from quantbench.store import write_atomically
from quantbench.supervise import supervised

# The states of the device that a row quotes are those under the first of these: what engines spend their time on.
LOADS = ("bf16", "fp16", "fp32")


def main(argv=None):
    options = job_options(argv, __doc__.splitlines()[0])
    job, store = options.job, options.store
    [point] = expand(job)
    if not store.has_point(point["key"]):
        probe(job, store, point)
    write_atomically(options.output, canonical_json(store.read_point(point["key"])["rows"][0]))


def probe(job, store, point):
    """Measure the one point of the job."""
    started = time.perf_counter()
    run = new_run("probe_gpu", job)
    entry = job["gpu_entry"]
    check_device(entry, run["device_name"])
    check_versions([point], run["versions"])
    os.environ.update(engine_environment(entry))
    store.write_run(run)
    cuda = entry["environment"] == "engine-cuda"
    # Before this process touches the device itself.
    processes = DeviceState("cuda").processes() if cuda else None
    row = {
        "device_name": run["device_name"],
        "driver": run["driver"],
        **(describe_cuda(entry) if cuda else describe_cpu()),
    }
    row |= {"other_processes": processes} | measure_ceilings("cuda" if cuda else "cpu", row)
    measured_s = time.perf_counter() - started
    store.write_point(point["identity"], status="ok", rows=[row], run_id=run["run_id"], measured_s=measured_s)
    store.write_run(finish(run | {"points_measured": 1, "measured_s": measured_s}))
    Progress(f"probe {job['gpu']}", 1).step()


def describe_cuda(entry):
    """What this process's CUDA device is. Raises UserError when torch sees none, or another than the data sheet's."""
    import torch

    if not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device, though the driver lists one: is CUDA_VISIBLE_DEVICES right?")
    device = torch.cuda.get_device_properties(0)
    # The driver's name was checked before; CUDA may count devices in another order, or show a slice of one.
    check_device(entry, device.name)
    capability = f"{device.major}.{device.minor}"
    if capability != entry["compute_capability"]:
        expected = entry["compute_capability"]
        raise UserError(f"the device has compute capability {capability}, the data sheet says {expected}")
    # A context, so that the state is that of this very device.
    torch.cuda.init()
    return DeviceState("cuda").describe() | {
        "capability": capability,
        "cuda_version": torch.version.cuda,
        "memory_bytes": device.total_memory,
        "l2_bytes": device.L2_cache_size,
        "l3_bytes": None,
        "threads": None,
        "isa": None,
    }


def describe_cpu():
    """What this process's CPU is; what only a GPU has is null."""
    import torch

    return DeviceState("cpu").describe() | {
        "capability": None,
        "cuda_version": None,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "l2_bytes": hardware.cache_bytes(2),
        "l3_bytes": hardware.cache_bytes(3),
        "max_sm_clock_hz": hardware.max_clock_hz(),
        "threads": torch.get_num_threads(),
        "isa": hardware.instruction_sets(),
    }


def measure_ceilings(device_type, described):
    """The measured fields of the row: bandwidth, rates, and the state of the device while products ran."""
    from quantbench.gemm.ceilings import measure_bandwidth, measure_rates

    bandwidths = measure_bandwidth(device_type, described["l3_bytes"])
    rates, states = measure_rates(device_type, described["capability"], described["isa"], DeviceState(device_type))
    return {
        "bandwidth_bytes_per_s": max(bandwidths.values()),
        "bandwidths_bytes_per_s": bandwidths,
        "matrix_flops_per_s": rates,
        **next((states[dtype] for dtype in LOADS if rates[dtype]), dict.fromkeys(FIELDS)),
    }


if __name__ == "__main__":
    supervised(main)
