"""What an engine's memory holds, as its worker says it. Runs inside a worker; reads attributes and torch's own counters.

On CUDA (vLLM 0.25.1 and 0.32): the runner's `model_memory_usage` is what loading the weights took; graphs live in memory pools
of their own, which torch's snapshot tells from the common one. Seen on a CPU, read from vLLM's source for CUDA.
"""

import resource


def report_memory(worker):
    """{"weight_bytes", "kv_cache_bytes", "graph_bytes", "peak_bytes", "device_bytes", "device_used_bytes"} of one worker's
    device; null where the engine does not say. Of a CPU the peak is the process's resident memory.

    peak_bytes         most that torch has held since the engine's start, its trial run of the largest step included
    device_used_bytes  taken on the device, by whomever and for whatever, now
    """
    import torch

    runner = worker.model_runner
    found = {
        "weight_bytes": getattr(runner, "model_memory_usage", None) or None,
        "kv_cache_bytes": _cache_bytes(runner),
    }
    found |= dict.fromkeys(("graph_bytes", "device_bytes", "device_used_bytes"))
    if not torch.cuda.is_available():
        # Linux counts the resident peak in KiB.
        return found | {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    free, total = torch.cuda.mem_get_info()
    common = (0, 0)
    pools = [part["total_size"] for part in torch.cuda.memory_snapshot() if part["segment_pool_id"] != common]
    found |= {"graph_bytes": sum(pools), "peak_bytes": torch.cuda.max_memory_reserved()}
    return found | {"device_bytes": total, "device_used_bytes": total - free}


def _cache_bytes(runner):
    """Bytes of the tensors that hold keys and values; layers may share one, and some models nest them in lists."""
    storages, waiting = {}, list(getattr(runner, "kv_caches", None) or [])
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, list | tuple):
            waiting += entry
        elif hasattr(entry, "untyped_storage"):
            storage = entry.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values()) or None
