"""The other side: one `vllm bench` command per point, and for a serving point a stock `vllm serve` around it.

Every command gets the study's engine arguments and the environment that quantbench gives its own engine. Its output
goes to a log; one that fails ends the benchmark.
"""

import contextlib
import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path

from quantbench.engine.server import command_line, free_port
from quantbench.engine.settings import engine_environment
from quantbench.load import poisson_offsets, warm_up_requests

START_LIMIT_S = 600
# Every process of theirs is new, and on a CPU gets faster for its first two seconds; the default of `vllm bench latency`
# is 10. As many requests as take a server that long.
WARM_UP_PASSES, WARM_UP_BATCHES, WAKING_REQUESTS = 30, 10, 100
GREEDY = Path(__file__).with_name("greedy_vllm.py")


class VllmBench:
    """Runs points on one model.

    python       interpreter of the engine's environment
    model        folder of the checkpoint
    engine_args  {name as in vLLM's EngineArgs: value}
    gpu_entry    the device's entry in config/gpus.yaml
    logs         folder for the commands' output
    stock        latency and throughput as they are, at temperature 1, instead of greedy (greedy_vllm.py)
    """

    def __init__(self, python, model, engine_args, gpu_entry, logs, stock):
        self.command = [str(python), "-m", "vllm.entrypoints.cli.main"]
        self.engine_command = self.command if stock else [str(python), str(GREEDY)]
        self.model, self.logs = str(model), logs
        self.engine_args = command_line(engine_args)
        # An engine in the command's own process: the quickest start that `vllm bench` has on a CPU.
        self.environment = dict(os.environ) | engine_environment(gpu_entry) | {"TRANSFORMERS_OFFLINE": "1"}

    def measure(self, stage, params, name):
        """{"values": {metric: [seconds]}, "wall_s": {part: seconds}} of one point."""
        return getattr(self, f"_{stage}")(params, name)

    def _latency(self, params, name):
        result, wall_s = self._engine(
            "latency",
            name,
            f"--input-len={params['input_tokens']}",
            f"--output-len={params['output_tokens']}",
            f"--num-iters-warmup={WARM_UP_PASSES}",
            f"--batch-size={params['batch_size']}",
            f"--num-iters={params['repeats']['most']}",
            "--disable-detokenize",
        )
        return {"values": {"latency": result["latencies"]}, "wall_s": {"latency": wall_s}}

    def _throughput(self, params, name):
        # With this data set --input-len and --output-len say nothing. The command times one batch and has no repeats.
        result, wall_s = self._engine(
            "throughput",
            name,
            "--dataset-name=random",
            f"--random-input-len={params['input_tokens']}",
            f"--random-output-len={params['output_tokens']}",
            f"--num-prompts={params['batch_size']}",
            f"--num-warmups={WARM_UP_BATCHES * params['batch_size']}",
            "--disable-detokenize",
        )
        return {"values": {"elapsed": [result["elapsed_time"]]}, "wall_s": {"throughput": wall_s}}

    def _serving(self, params, name):
        trace = self.logs / f"{name}.trace.jsonl"
        write_trace(params, trace)
        began = time.monotonic()
        with self._server(name) as url:
            result, command_s = self._serve(params, name, url, trace)
        server_s = time.monotonic() - began - command_s
        failed = [error for error in result["errors"] if error]
        if failed or len(result["ttfts"]) != params["requests"]:
            raise RuntimeError(f"{name}: {len(failed)} requests failed: {failed[:1]}")
        latencies = [ttft + sum(gaps) for ttft, gaps in zip(result["ttfts"], result["itls"], strict=True)]
        values = {"first token": result["ttfts"], "latency": latencies}
        return {"values": values, "wall_s": {"servers": server_s, "serve": command_s}}

    def _serve(self, params, name, url, trace):
        warm_ups = WAKING_REQUESTS + warm_up_requests(params)
        arguments = [*serve_arguments(params, name, url, trace, self.logs), f"--num-warmups={warm_ups}"]
        return self._run(self.command, "serve", name, arguments)

    def _engine(self, kind, name, *arguments):
        arguments = [*arguments, *self.engine_args, f"--output-json={self.logs / name}.json"]
        return self._run(self.engine_command, kind, name, arguments)

    def _run(self, vllm, kind, name, arguments):
        """(what the command wrote as JSON, its wall seconds)"""
        log, began = self.logs / f"{name}.log", time.monotonic()
        with open(log, "wb") as file:
            command = [*vllm, "bench", kind, f"--model={self.model}", *arguments]
            status = subprocess.run(command, env=self.environment, stdout=file, stderr=subprocess.STDOUT).returncode
        wall_s = time.monotonic() - began
        if status:
            raise RuntimeError(f"`vllm bench {kind}` ended with status {status}, see {log}")
        return json.loads((self.logs / f"{name}.json").read_text()), wall_s

    @contextlib.contextmanager
    def _server(self, name):
        port, log = free_port(), self.logs / f"{name}.server.log"
        arguments = [f"--port={port}", "--host=127.0.0.1", "--disable-uvicorn-access-log"]
        environment = self.environment | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [*self.command, "serve", self.model, *self.engine_args, *arguments],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_until_healthy(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def wait_until_healthy(process, url, log):
    began = time.monotonic()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None and time.monotonic() - began < START_LIMIT_S:
        try:
            opener.open(f"{url}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"`vllm serve` did not start, see {log}")


def serve_arguments(params, name, url, trace, folder):
    """Arguments of `vllm bench serve` that send the load of a trace, and write <name>.json into a folder."""
    timed = params["load"] == "rate"
    return [
        f"--base-url={url}",
        "--backend=openai",
        "--dataset-name=timed_trace",
        f"--dataset-path={trace}",
        f"--timed-trace-chunk-hash-size={params['input_tokens']}",
        "--self-timed" if timed else "--no-self-timed",
        *([] if timed else [f"--max-concurrency={params['concurrency']}"]),
        f"--num-prompts={params['requests']}",
        "--temperature=0",
        "--disable-tqdm",
        "--save-result",
        "--save-detailed",
        f"--result-dir={folder}",
        f"--result-filename={name}.json",
    ]


def write_trace(params, path):
    """The point's load as a trace for `vllm bench serve`: the arrival times that quantbench uses, prompts of its own.

    Two draws of forty arrivals queue differently by more than what is to be compared. A prompt is one chunk with a
    number of its own, so no two are alike.
    """
    numbers = range(params["requests"])
    offsets_s = [0] * len(numbers)
    if params["load"] == "rate":
        offsets_s = poisson_offsets(params["rate_per_s"], params["requests"], params["seed"])
    lengths = {"input_length": params["input_tokens"], "output_length": params["output_tokens"]}
    rows = [{"timestamp": offsets_s[number], "hash_ids": [number], **lengths} for number in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
