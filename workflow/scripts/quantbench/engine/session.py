"""One engine in this process: started once, asked for its kernels, measured many times.

Imports vLLM inside functions, after the process environment is set.
"""

import math
import time
from pathlib import Path

import numpy as np

from quantbench.energy import NO_METER
from quantbench.lengths import Asked
from quantbench.load import WAKING_S, random_prompts, read_token_ids
from quantbench.statistics import narrow_enough

MOST_WARM_UPS = 5


class Session:
    """A running `vllm.LLM` on one checkpoint.

    start_s          seconds from the constructor's call to the engine's readiness, imports not counted
    kernels          what runs each linear layer (see engine/kernels.py)
    meter            an EnergyMeter, whose record is that of the last batches
    """

    def __init__(self, checkpoint, engine_args, meter=NO_METER):
        from vllm import LLM

        started = time.perf_counter()
        self.llm = LLM(
            model=str(checkpoint),
            disable_log_stats=False,
            # The most that may be asked for, which a request then does not; vLLM allows 20 otherwise.
            max_logprobs=-1,
            worker_extension_cls="quantbench.engine.kernels.KernelReporter",
            **engine_args,
        )
        self.start_s = time.perf_counter() - started
        self.checkpoint = Path(checkpoint)
        self._worked_s = 0.0
        self.meter = meter
        self.kernels = self.llm.collective_rpc("report_kernels")[0]

    def load_record(self):
        """The row of a `load` point: start time, memory and kernels."""
        cache = self.llm.llm_engine.vllm_config.cache_config
        blocks = getattr(cache, "num_gpu_blocks", None)
        return {
            "engine_start_s": self.start_s,
            # Repacked layers read as empty on a CPU: the files say what the weights take.
            "weight_bytes": sum(path.stat().st_size for path in self.checkpoint.glob("*.safetensors")),
            # Blocks times their size is wrong for models that mix kinds of layers; releases before 0.32 say no other.
            "kv_cache_tokens": getattr(cache, "kv_cache_size_tokens", None) or (blocks and blocks * cache.block_size),
            # Of one device; those of a tensor-parallel group hold equal parts.
            "memory": self.llm.collective_rpc("report_memory")[0],
            "kernels": self.kernels,
        }

    def latency(self, batch_size, input_tokens, output_tokens, repeats):
        """Rows of one batch, end to end: elapsed_s until its last token, ttft_s until every sequence has its first."""
        prompts = random_prompts(read_token_ids(self.checkpoint), input_tokens, batch_size, seed=0)
        requests = [Asked(prompt, output_tokens) for prompt in prompts]
        return self._batches(requests, repeats, first_token=True)

    def throughput(self, batch_size, repeats, prompts, **asked):
        """Rows of `batch_size` prompts submitted at once: elapsed_s until all are done.

        prompts  a lengths.Prompts
        asked    input_tokens and output_tokens, or workload and seed; then a row also has what all prompts have together,
                 total_input_tokens and total_output_tokens
        """
        requests = prompts.take({"seed": 0, **asked}, batch_size)
        rows = self._batches(requests, repeats, first_token=False)
        if "workload" not in asked:
            return rows
        totals = {"total_input_tokens": sum(len(request.prompt) for request in requests)}
        totals["total_output_tokens"] = sum(request.output_tokens for request in requests)
        return [row | totals for row in rows]

    def _batches(self, requests, repeats, first_token):
        """Rows of a batch of lengths.Asked."""
        from vllm import SamplingParams

        # Greedy, never stopping early, never turned into text: exactly `output_tokens` decoding steps.
        parameters = {
            count: SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True, detokenize=False)
            for count in {asked.output_tokens for asked in requests}
        }
        parameters = [parameters[asked.output_tokens] for asked in requests]
        prompts = [{"prompt_token_ids": asked.prompt} for asked in requests]

        def once():
            started, started_at = time.perf_counter(), time.time()
            outputs = self.llm.generate(prompts, parameters, use_tqdm=False)
            elapsed_s = time.perf_counter() - started
            row = {"elapsed_s": elapsed_s}
            if first_token:
                # vLLM counts from each prompt's arrival in its queue; the batch was handed over before the first.
                firsts = [output.metrics.arrival_time + output.metrics.first_token_latency for output in outputs]
                row["ttft_s"] = max(firsts) - started_at
            return row

        while self._worked_s < WAKING_S:
            self._worked_s += once()["elapsed_s"]
        warm_up(once)
        rows = []
        with self.meter:
            while not narrow_enough(np.array([row["elapsed_s"] for row in rows]), repeats):
                rows.append({"repeat": len(rows), **once()})
        return rows


def warm_up(once):
    """Run a pass until it is no longer faster than the one before, at least twice.

    The first compiles and allocates for its shape; on a CPU the second is still a tenth slower than the rest.
    """
    last_s = math.inf
    for _ in range(MOST_WARM_UPS):
        elapsed_s = once()["elapsed_s"]
        if elapsed_s > 0.95 * last_s:
            return
        last_s = elapsed_s
