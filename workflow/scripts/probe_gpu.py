"""What the device is and the most it can do: rule probe_gpu.

Checks that the device is the one the job claims, then measures its ceilings: memory bandwidth by large copies, and the
rate of square matrix products per number format. Ceilings are bests, not medians. Writes the record to --output.
"""

import argparse
import os
import time

from quantbench.engine.settings import engine_environment
from quantbench.errors import UserError
from quantbench.gpus import check_device
from quantbench.jobs import read_job
from quantbench.keys import canonical_json
from quantbench.points import expand
from quantbench.progress import Progress
from quantbench.provenance import finish, new_run
from quantbench.store import Store, write_atomically
from quantbench.supervise import supervised

REPEATS = 10
# A product has to take this long for its rate to count; sizes double until it does.
PRODUCT_S = {"cuda": 0.005, "cpu": 0.05}
SIDES = (512, 1024, 2048, 4096, 8192, 16384)


def main(argv=None):
    options = parser().parse_args(argv)
    store = Store(options.store)
    job = read_job(options.job, store)
    [point] = expand(job)
    if not store.has_point(point["key"]):
        probe(job, store, point)
    write_atomically(options.output, canonical_json(store.read_point(point["key"])["rows"][0]))


def probe(job, store, point):
    """Measure the one point of the job."""
    started = time.perf_counter()
    run = new_run("probe_gpu", job)
    check_device(job["gpu_entry"], run["device_name"])
    os.environ.update(engine_environment(job["gpu_entry"]))
    store.write_run(run)
    row = {"device_name": run["device_name"], "driver": run["driver"]}
    row |= describe_device(job["gpu_entry"])
    device_type = "cuda" if job["gpu_entry"]["environment"] == "engine-cuda" else "cpu"
    row["bandwidth_bytes_per_s"] = measure_bandwidth(device_type, row["memory_bytes"])
    row["matrix_flops_per_s"] = measure_rates(device_type)
    measured_s = time.perf_counter() - started
    store.write_point(point["identity"], status="ok", rows=[row], run_id=run["run_id"], measured_s=measured_s)
    store.write_run(finish(run | {"points_measured": 1, "measured_s": measured_s}))
    Progress(f"probe {job['gpu']}", 1).step()


def describe_device(entry):
    """{"capability", "memory_bytes"} of this process's device. Raises UserError when the capability is another."""
    import torch

    if entry["environment"] != "engine-cuda":
        return {"capability": None, "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")}
    if not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device, though the driver lists one: is CUDA_VISIBLE_DEVICES right?")
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    if capability != entry["compute_capability"]:
        expected = entry["compute_capability"]
        raise UserError(f"the device has compute capability {capability}, the data sheet says {expected}")
    return {"capability": capability, "memory_bytes": torch.cuda.get_device_properties(0).total_memory}


def measure_bandwidth(device_type, memory_bytes):
    """Best of copying and of a + 2 b -> c, in bytes read and written per second.

    A CPU may read a line before it writes it; those bytes are not counted, so its bus is a little better than this.
    """
    import torch

    # Far more than any cache holds: 256 MiB on a CPU, 1 GiB on a GPU.
    elements = min((1 << 30 if device_type == "cuda" else 1 << 28), memory_bytes // 16) // 4
    a, b, c = (torch.ones(elements, device=device_type) for _ in range(3))
    copied = best_s(lambda: c.copy_(a), device_type)
    added = best_s(lambda: torch.add(a, b, alpha=2.0, out=c), device_type)
    return max(2 * 4 * elements / copied, 3 * 4 * elements / added)


def measure_rates(device_type):
    """{dtype: operations per second} of square products, for the formats that torch multiplies on this device."""
    rates = {}
    for dtype in ("fp32", "tf32", "bf16", "fp16", "fp8", "int8"):
        rate = measure_rate(dtype, device_type)
        if rate:
            rates[dtype] = rate
    return rates


def measure_rate(dtype, device_type):
    """Best rate of a square product of one format; None where torch has none, or only an emulation."""
    import torch

    if device_type == "cpu" and dtype in ("tf32", "fp16", "fp8"):
        # Not formats that CPUs multiply in; torch converts them one by one.
        return None
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    rate = None
    for side in SIDES:
        try:
            multiply = make_product(dtype, side, device_type)
            once = best_s(multiply, device_type, repeats=2)
        except (RuntimeError, NotImplementedError, AttributeError):
            break
        enough = once >= PRODUCT_S[device_type]
        if enough or side == SIDES[-1]:
            once = best_s(multiply, device_type)
        rate = max(rate or 0.0, 2 * side**3 / once)
        if enough:
            break
    return rate


def make_product(dtype, side, device_type):
    """A function that multiplies two side x side matrices. Raises what torch raises where it cannot."""
    import torch

    if dtype == "int8":
        a, b = (torch.randint(-128, 128, (side, side), dtype=torch.int8, device=device_type) for _ in range(2))
        return lambda: torch._int_mm(a, b)
    if dtype == "fp8":
        a, b = (torch.randn(side, side, device=device_type).to(torch.float8_e4m3fn) for _ in range(2))
        one = torch.ones((), device=device_type)
        return lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16)
    types = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    # Random numbers: zeros draw less power and run faster than any real product.
    a, b = (torch.randn(side, side, device=device_type, dtype=torch.float32).to(types[dtype]) for _ in range(2))
    return lambda: torch.matmul(a, b)


def best_s(function, device_type, repeats=REPEATS):
    """Least seconds of a call, after one that is not counted."""
    import torch

    wait = torch.cuda.synchronize if device_type == "cuda" else lambda: None
    best = None
    for index in range(repeats + 1):
        wait()
        start = time.perf_counter()
        function()
        wait()
        elapsed = time.perf_counter() - start
        if index:
            best = elapsed if best is None else min(best, elapsed)
    return best


def parser():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--job", required=True, help="the job: JSON, or <manifest.json>:<rule>/<gpu>")
    arguments.add_argument("--store", required=True, help="folder of the store")
    arguments.add_argument("--output", required=True, help="file for the record, written last")
    return arguments


if __name__ == "__main__":
    supervised(main)
