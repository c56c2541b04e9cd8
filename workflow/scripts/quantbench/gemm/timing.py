"""The time of one layer at one m: repeated passes over copies of its weights that no cache holds.

A pass calls each copy once. Before it a buffer larger than the last cache is written, so the copies come from memory,
as they do in a model, where every other layer's weights are read in between. A pass takes at least a millisecond, so
neither the clock nor the first, coldest call decides. On CUDA a pass is one captured graph: launching is not timed.
"""

import math
import os
import time

import torch

from quantbench.statistics import narrow_enough

PASS_S = 0.002
MOST_COPIES = 256
# Copies may take this much memory, and on a GPU at most a quarter of what is free.
COPIES_BYTES = 4 << 30
# Larger than any last-level cache that a process has to itself; per-socket caches above it are shared.
CPU_FLUSH_BYTES = 64 << 20


class Stopwatch:
    """Times layers on one device."""

    def __init__(self, device):
        self.device = device
        self.cuda = device.type == "cuda"
        self._flushed = torch.zeros(self._flush_bytes(), dtype=torch.uint8, device=device)

    def repeat(self, copies, x, weight_bytes, repeats):
        """Seconds of one call, per repeat, until statistics.narrow_enough.

        copies        function: count -> a list of that many equal layers
        x             [m, k] activations
        weight_bytes  of one copy
        """
        count = self._copies_needed(copies(1)[0], x, weight_bytes)
        layers = copies(count)
        run = self._captured(layers, x) if self.cuda else lambda: _call_each(layers, x)
        # The first pass pays for workspaces and for choosing an algorithm.
        self._pass(run)
        values = []
        while not narrow_enough(values, repeats):
            values.append(self._pass(run) / count)
        return values

    def _copies_needed(self, layer, x, weight_bytes):
        """As many as fill a pass, within memory."""
        calls = 3
        _call_each([layer] * calls, x)
        each_s = self._elapsed(lambda: _call_each([layer] * calls, x)) / calls
        memory = min(COPIES_BYTES, torch.cuda.mem_get_info()[0] // 4) if self.cuda else COPIES_BYTES
        return max(1, min(math.ceil(PASS_S / each_s), MOST_COPIES, memory // weight_bytes))

    def _pass(self, run):
        """Seconds of one pass with cold caches."""
        self._flushed.add_(1)
        return self._elapsed(run)

    def _elapsed(self, run):
        if not self.cuda:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def _captured(self, layers, x):
        """The pass as a CUDA graph, as decoding runs it."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            _call_each(layers, x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            _call_each(layers, x)
        return graph.replay

    def _flush_bytes(self):
        if self.cuda:
            return 2 * torch.cuda.get_device_properties(self.device).L2_cache_size
        return max(CPU_FLUSH_BYTES, 2 * _last_cache_bytes())


def _call_each(layers, x):
    for layer in layers:
        layer(x)


def _last_cache_bytes():
    """Size of the processor's last cache, 0 where the system does not tell."""
    name = "SC_LEVEL3_CACHE_SIZE"
    return max(os.sysconf(name), 0) if name in os.sysconf_names else 0
