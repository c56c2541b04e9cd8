"""The two ceilings of a device: how fast memory is read and written, and how fast matrices multiply in each type.

A ceiling is the most that a hot loop reaches, so it is the best of several sizes, shapes and tries, not a median. Sizes
differ in what limits them: a large product fills every unit, a small one stays in a CPU's caches.
"""

import itertools
import math
import os
import time

import torch

from quantbench.device_state import FIELDS
from quantbench.hardware import DTYPES, multiplies

# One call on a GPU is too short for a clock: calls fill a window between two events.
WINDOW_S = 0.05
WINDOWS = 4
CPU_TRY_S = 0.06
# A product longer than this is not tried: on so slow a type the sizes before it have filled the device.
MOST_CALL_S = {"cuda": 0.25, "cpu": 0.1}
CUDA_SIDES = (2048, 4096, 8192, 16384)
# (m, k, n) of [m, k] x [k, n]: in the caches of one core, in those of a server, out of them; few rows and many.
CPU_SHAPES = (
    (128, 512, 512), (512, 512, 512), (128, 2048, 1024), (4096, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048),
    (4096, 4096, 4096),
)  # fmt: skip


def measure_bandwidth(device_type, l3_bytes=None):
    """Best bytes per second of {"copy": a -> b, "add": a + 2 b -> c, "read": sum of a}; bytes read plus bytes written.

    A CPU may read a line before it writes it; those bytes are not counted, so its bus does better than copies say.
    """
    if device_type == "cuda":
        # Far more than the cache holds; so much that starting and ending a call is lost in it.
        size = min(4 << 30, torch.cuda.mem_get_info()[0] // 8)
    else:
        # A virtual machine may name less cache than it has: at least 256 MiB.
        size = max(256 << 20, min(4 * (l3_bytes or 0), os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8))
    elements = size // 4
    a, b, c = (torch.ones(elements, device=device_type) for _ in range(3))
    calls = {
        "copy": (2, lambda: c.copy_(a)),
        "add": (3, lambda: torch.add(a, b, alpha=2.0, out=c)),
        "read": (1, lambda: torch.sum(a)),
    }
    return {name: passes * 4 * elements / best_s(call, device_type)[0] for name, (passes, call) in calls.items()}


def measure_rates(device_type, capability=None, isa=None, state=None):
    """({dtype: operations per second, null where there is none}, {dtype: state of the device at its best}).

    state  device_state.DeviceState, sampled while the products run
    """
    rates, states = dict.fromkeys(DTYPES), {}
    for dtype in DTYPES:
        if multiplies(dtype, device_type, capability, isa):
            rates[dtype], states[dtype] = measure_rate(dtype, device_type, state)
    if device_type == "cuda":
        # After a fault on the device nothing above was a refusal: this raises.
        torch.cuda.synchronize()
    return rates, states


def measure_rate(dtype, device_type, state=None):
    """(best rate of a product of one type, state of the device then); (None, nulls) where torch refuses every shape."""
    rate, at_best = None, dict.fromkeys(FIELDS)
    for make, (m, k, n) in itertools.product(ways(dtype, device_type), shapes(device_type)):
        operations = 2 * m * k * n
        if rate and operations / rate > MOST_CALL_S[device_type]:
            continue
        try:
            once, then = best_s(make(dtype, m, k, n, device_type), device_type, state)
        except (RuntimeError, AttributeError, ValueError) as error:
            # A type or size that this device, build or free memory has no product for.
            print(f"{dtype} {m} x {k} x {n}: {str(error).splitlines()[0]}", flush=True)
            continue
        if rate is None or operations / once > rate:
            rate, at_best = operations / once, then
    return rate, at_best


def ways(dtype, device_type):
    """Functions that make a product of a type. A CPU's floats have two: torch's own, and oneDNN's with a packed weight.

    torch multiplies fp32 by MKL, which does not use all that an AMD has; engines use oneDNN.
    """
    return [make_product] + [make_packed_product] * (device_type == "cpu" and dtype != "int8")


def shapes(device_type):
    """(m, k, n) of the products to try, smallest first."""
    if device_type == "cpu":
        return CPU_SHAPES
    # A square leaves the last wave of tiles part empty; rows for each multiprocessor alike do not.
    even = (128 * torch.cuda.get_device_properties(0).multi_processor_count, 8192, 4096)
    return sorted([*((side, side, side) for side in CUDA_SIDES), even], key=math.prod)


def make_product(dtype, m, k, n, device_type):
    """A function that multiplies an [m, k] with a [k, n] matrix. Raises what torch raises where it cannot."""
    # Both operands lie along k, as weights do. Random numbers: zeros draw less power and run faster than any real product.
    if dtype == "int8":
        a, b = (torch.randint(-128, 128, size, dtype=torch.int8, device=device_type) for size in ((m, k), (n, k)))
        out = torch.empty(m, n, dtype=torch.int32, device=device_type)
        return lambda: torch._int_mm(a, b.t(), out=out)
    if dtype == "fp8":
        a, b = (torch.randn(size, device=device_type).to(torch.float8_e4m3fn) for size in ((m, k), (n, k)))
        one = torch.ones((), device=device_type)
        # Sums stay in the tensor cores, as in the engine's own products.
        return lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
    if dtype == "fp4":
        return make_fp4_product(m, k, n, device_type)
    types = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    a, b = (torch.randn(size, device=device_type).to(types[dtype]) for size in ((m, k), (n, k)))
    out = torch.empty(m, n, dtype=types[dtype], device=device_type)
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    return lambda: torch.mm(a, b.t(), out=out)


def make_packed_product(dtype, m, k, n, device_type):
    """The same with a weight that oneDNN has laid out for its own kernel, as a served layer's is."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    a, b = (torch.randn(size, device=device_type).to(kind) for size in ((m, k), (n, k)))
    packed = torch.ops.mkldnn._reorder_linear_weight(b, m)
    return lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")


def make_fp4_product(m, k, n, device_type):
    """The same for NVFP4: two numbers a byte, an 8-bit scale for 16 of them, in cuBLAS's layout of 128 x 4 blocks."""
    a, b = (
        torch.randint(256, (rows, k // 2), dtype=torch.uint8, device=device_type).view(torch.float4_e2m1fn_x2)
        for rows in (m, n)
    )
    scale_a, scale_b = (
        torch.ones(math.ceil(rows / 128) * 128 * math.ceil(k / 64) * 4, device=device_type).to(torch.float8_e4m3fn)
        for rows in (m, n)
    )
    return lambda: torch._scaled_mm(a, b.t(), scale_a, scale_b, out_dtype=torch.bfloat16)


def best_s(function, device_type, state=None):
    """(least seconds of a call, state of the device then), after warming up."""
    return cuda_best_s(function, state) if device_type == "cuda" else (cpu_best_s(function), dict.fromkeys(FIELDS))


def cuda_best_s(function, state=None):
    """Best of WINDOWS windows of calls without a pause, each at least WINDOW_S long, by the device's own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def window(calls):
        start.record()
        for _ in range(calls):
            function()
        end.record()
        # The queue is still full: the state is that of a device at work.
        then = state.sample() if state else dict.fromkeys(FIELDS)
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls, then

    # The first call pays for workspaces and for choosing an algorithm.
    window(1)
    once, _ = window(3)
    # The clocks rise within a window; that one is not counted.
    once, _ = window(math.ceil(WINDOW_S / once))
    return min((window(math.ceil(WINDOW_S / once)) for _ in range(WINDOWS)), key=lambda timed: timed[0])


def cpu_best_s(function):
    """Least seconds of one call, of at least three and of as many as CPU_TRY_S holds."""
    function()
    best, deadline, calls = math.inf, time.perf_counter() + CPU_TRY_S, 0
    while calls < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
        calls += 1
    return best
