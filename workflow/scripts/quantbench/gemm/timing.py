"""The time of one product at one m: repeated passes of calls, launched and cached in each way that a reader asks about.

cold    each call reads a copy of the weights that no cache holds, as in a model, where every other layer's weights are
        read in between: a buffer larger than the last cache is written first, and the calls rotate through more
        copies than that cache holds
hot     every call reads the same weights: what a loop around one product shows, and most published tables have
graph   the pass is one captured CUDA graph, as decoding runs it: launching is not timed
eager   every call is launched from Python

A pass takes at least a millisecond or two, so neither the clock nor its first call decides.
"""

import itertools
import math
import os
import time

import torch

from quantbench.device_state import DeviceState, throttled
from quantbench.statistics import narrow_enough

PASS_S = 0.002
MOST_CALLS = 256
# Copies may take this much memory, and on a GPU at most a quarter of what is free.
COPIES_BYTES = 4 << 30
# Larger than any last-level cache that a process has to itself; per-socket caches above it are shared.
CPU_FLUSH_BYTES = 64 << 20
# Caches do not evict strictly in turn. Where a random line makes room, a rotation through r times the cache finds the
# share h = exp(-r (1 - h)) still there: 20 % for r = 2, 2 % for r = 4.
ROTATION = 4
# (launch, cache); the first repeats until its interval is narrow enough, the others `least` times.
COMBINATIONS = {
    "cuda": (("graph", "cold"), ("graph", "hot"), ("eager", "cold"), ("eager", "hot")),
    "cpu": (("eager", "cold"), ("eager", "hot")),
}


class Stopwatch:
    """Times products on one device."""

    def __init__(self, device):
        self.device = device
        self.cuda = device.type == "cuda"
        self.cache_bytes = self._last_cache_bytes()
        flush = 2 * self.cache_bytes if self.cuda else max(CPU_FLUSH_BYTES, 2 * self.cache_bytes)
        self._flushed = torch.zeros(flush, dtype=torch.uint8, device=device)
        # After torch has touched the device, so that it is the same one.
        self._state = DeviceState(device.type)
        self._at_rest = self._state.sample()

    def rows(self, copies, operand, call_s, weight_bytes, repeats):
        """One row per repeat of each combination: {"repeat", "launch", "cache", "latency_s", clocks, temperature, power}.

        copies        function: count -> that many equal products with weights of their own
        operand       what each is called with
        call_s        about what one call takes
        weight_bytes  of one copy
        repeats       the study's; a throttled repeat carries "status" and "reason", and does not narrow the interval
        """
        calls = self._calls(copies(1)[0], operand, call_s)
        cold = copies(self._copies_needed(calls, weight_bytes))
        rows = []
        for number, (launch, cache) in enumerate(COMBINATIONS["cuda" if self.cuda else "cpu"]):
            products = cold if cache == "cold" else cold[:1]
            run = self._runner(list(itertools.islice(itertools.cycle(products), calls)), operand, launch)
            wanted = repeats if number == 0 else repeats | {"most": repeats["least"]}
            for repeat, row in enumerate(self._repeated(run, launch, cache, wanted)):
                row["latency_s"] /= calls
                rows.append({"repeat": repeat, "launch": launch, "cache": cache, **row})
        return rows

    def elapsed(self, run):
        """Seconds of run(), once."""
        return self._timed(run)["latency_s"]

    def _repeated(self, run, launch, cache, repeats):
        """Rows of passes, until those that count are narrow_enough or `most` have run."""
        # The first pass pays for workspaces and for choosing an algorithm.
        self._pass(run, launch, cache)
        rows, counting = [], []
        while not narrow_enough(counting, repeats) and len(rows) < repeats["most"]:
            row = self._pass(run, launch, cache)
            rows.append(row)
            if "status" not in row:
                counting.append(row["latency_s"])
        return rows

    def _calls(self, product, operand, call_s):
        """How many calls fill a pass."""
        if call_s < PASS_S:
            call_s = self.elapsed(lambda: _call_each([product] * 3, operand)) / 3
        return max(1, min(math.ceil(PASS_S / call_s), MOST_CALLS))

    def _copies_needed(self, calls, weight_bytes):
        """Enough that no call finds its weights in a cache, as far as memory goes."""
        memory = min(COPIES_BYTES, torch.cuda.mem_get_info()[0] // 4) if self.cuda else COPIES_BYTES
        rotation = math.ceil(ROTATION * self.cache_bytes / weight_bytes) if self.cache_bytes else calls
        return max(1, min(calls, rotation, memory // weight_bytes))

    def _pass(self, run, launch, cache):
        if cache == "cold":
            self._flushed.add_(1)
        if self.cuda and launch == "eager":
            # Else the launches hide behind the flush.
            torch.cuda.synchronize()
        return self._timed(run)

    def _timed(self, run):
        """One row: seconds of run(), and the device's state while it ran."""
        if self.cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            state = self._state.sample()
            end.synchronize()
            elapsed_s = begin.elapsed_time(end) / 1e3
        else:
            state = self._at_rest
            start = time.perf_counter()
            run()
            elapsed_s = time.perf_counter() - start
        row = {"latency_s": elapsed_s, **{name: value for name, value in state.items() if name != "throttle_reasons"}}
        if reasons := throttled(state["throttle_reasons"]):
            row |= {"status": "invalid", "reason": f"throttled: {', '.join(reasons)}"}
        return row

    def _runner(self, products, operand, launch):
        """A function that runs one pass."""
        if launch == "eager":
            return lambda: _call_each(products, operand)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            _call_each(products, operand)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            _call_each(products, operand)
        return graph.replay

    def _last_cache_bytes(self):
        """Size of the last cache: L2 of a GPU; 0 for a processor whose system does not tell."""
        if self.cuda:
            return torch.cuda.get_device_properties(self.device).L2_cache_size
        name = "SC_LEVEL3_CACHE_SIZE"
        return max(os.sysconf(name), 0) if name in os.sysconf_names else 0


def _call_each(products, operand):
    for product in products:
        product(operand)
