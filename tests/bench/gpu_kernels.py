"""Kernels on a GPU beside what others would measure there; prints tables, asserts nothing about time.

    QUANTBENCH_ENGINE_PYTHON=<engine environment>/bin/python python tests/bench/gpu_kernels.py [--json FILE]

1. bf16 8192 x 8192 x 8192, the stopwatch against a plain loop of torch.mm in the same process; at least 95 % wanted
2. five bf16 shapes against triton.testing.do_bench, which flushes the cache before each call too; within 2 % wanted
3. 4-bit weights at m = 1 by every contender and operator, against cuBLAS in fp16

The workflow's python reads the contenders, the engine's (--worker) measures: jobs as JSON on its standard input, one
JSON line per result on its standard output. tests/test_gpu_kernels.py uses the same worker.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow" / "scripts"))

from quantbench.engine.settings import engine_environment
from quantbench.store import write_atomically

ROOT = Path(__file__).resolve().parents[2]
REPEATS = {"least": 10, "most": 100, "relative_ci": 0.02, "confidence": 0.95}
SQUARE = (8192, 8192, 8192)
# m, n, k: prefill of a 7B model's layers, and two squares; long enough that launching does not decide.
DO_BENCH_SHAPES = [(4096, 4096, 4096), SQUARE, (2048, 22016, 4096), (4096, 4096, 11008), (1024, 12288, 4096)]
# n, k of a 7B model: attention's output, gate or up, down.
W4A16_SHAPES = [(4096, 4096), (11008, 4096), (4096, 11008)]
# Operators that config/kernels.yaml leaves to vLLM's own layer, in the formats of its 4-bit contenders.
W4A16_OPS = {
    "w4a16-gptq": [("marlin_gptq", "float16"), ("machete", "float16")],
    "w4a16-awq": [("gptq_gemm", "float16"), ("marlin_awq", "float16"), ("machete_zeros", "float16")],
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write every row as well")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        work(json.load(sys.stdin))
        return
    python = os.environ.get("QUANTBENCH_ENGINE_PYTHON") or parser.error("QUANTBENCH_ENGINE_PYTHON is not set")
    from quantbench.contenders import load_contenders

    contenders = load_contenders(ROOT / "config" / "kernels.yaml")
    names = ["dense-fp16"] + [name for name, spec in contenders.items() if spec["computes"] == "w4a16"]
    wanted = {name: contenders[name] for name in names if contenders[name]["device"] != "cpu"}
    for layout, ops in W4A16_OPS.items():
        for op, dtype in ops:
            wanted[f"{layout}, {op}"] = contenders[layout] | {"through": {"op": op}, "dtype": dtype}
    jobs = [{"kind": "loop", "shape": SQUARE}]
    jobs += [{"kind": "do_bench", "shape": shape} for shape in DO_BENCH_SHAPES]
    jobs += [contender_job(name, spec, n, k, [1]) for n, k in W4A16_SHAPES for name, spec in wanted.items()]
    results = list(run_worker(python, jobs))
    print("\n".join(report(results)))
    if options.json:
        write_atomically(options.json, json.dumps(results, indent=2))


def contender_job(name, spec, n, k, tokens, repeats=REPEATS):
    return {"kind": "contender", "name": name, "contender": spec, "n": n, "k": k, "tokens": tokens, "repeats": repeats}


def run_worker(python, jobs):
    """Results of the jobs, in order. One that ends the process has "died", its last words; a new process goes on."""
    environment = {**os.environ, **engine_environment({"environment": "engine-cuda"}), "VLLM_LOGGING_LEVEL": "ERROR"}
    while jobs:
        result = subprocess.run(
            [python, __file__, "--worker"], input=json.dumps(jobs), capture_output=True, text=True, env=environment
        )
        done = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"job"')]
        yield from done
        jobs = jobs[len(done) :]
        # A process that measured nothing would not do better the next time.
        for job in jobs[: 1 if done else None]:
            yield {"job": job, "died": result.stderr[-2000:]}
        jobs = jobs[1:] if done else []


# --- in the engine's environment --------------------------------------------------------------------------------------


def work(jobs):
    import torch
    from quantbench.gemm.harness import Harness

    kinds = {"loop": plain_loop, "do_bench": do_bench, "contender": one_contender}
    with Harness("cuda") as harness:
        for job in jobs:
            with torch.inference_mode():
                print(json.dumps({"job": job, **kinds[job["kind"]](harness, job)}), flush=True)


def one_contender(harness, job):
    """{"points": [{"m", "status", "reason", "rows"}]}"""
    spec = job["contender"]
    outcomes = harness.measure(
        job["n"], job["k"], job["tokens"], spec["dtype"] or "bfloat16", "linear", spec["format"], None, spec,
        job["repeats"],
    )  # fmt: skip
    return {
        "points": [
            {"m": m, "status": status, "reason": reason, "rows": rows} for m, status, reason, rows, _ in outcomes
        ]
    }


def plain_loop(harness, job, calls=20):
    """Seconds of one torch.mm in a loop of calls, and by the stopwatch in each of its ways; they take turns."""
    import torch

    copies, x = dense(job["shape"])
    [product] = copies(1)
    ours, theirs = [], []
    for _ in range(5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(calls):
            product(x)
        end.record()
        end.synchronize()
        theirs.append(begin.elapsed_time(end) / 1e3 / calls)
        ours += stopwatch_rows(harness, copies, x)
    return {"theirs_s": theirs, "rows": ours}


def do_bench(harness, job):
    """Seconds of one torch.mm by triton's do_bench, and by the stopwatch; they take turns."""
    from triton.testing import do_bench

    copies, x = dense(job["shape"])
    [product] = copies(1)
    ours, theirs = [], []
    for _ in range(5):
        theirs.append(do_bench(lambda: product(x), return_mode="median") / 1e3)
        ours += stopwatch_rows(harness, copies, x)
    return {"theirs_s": theirs, "rows": ours}


def dense(shape):
    """(function: count -> that many products with weights of their own, x [m, k]) in bf16."""
    import torch
    from quantbench.gemm.weights import make_activations, make_weight

    (m, n, k), device = shape, torch.device("cuda")
    weights = [make_weight(n, k, None, torch.bfloat16, device).tensors["weight"]]

    def copies(count):
        weights.extend(weights[0].clone() for _ in range(count - len(weights)))
        return [lambda operand, weight=weight.T: torch.mm(operand, weight) for weight in weights[:count]]

    return copies, make_activations(m, k, torch.bfloat16, device)


def stopwatch_rows(harness, copies, x):
    import torch

    [product] = copies(1)
    n = product(x).shape[1]
    call_s = harness.stopwatch.elapsed(lambda: product(x))
    few = REPEATS | {"least": 5, "most": 10}
    return harness.stopwatch.rows(copies, x, call_s, n * x.shape[1] * torch.bfloat16.itemsize, few)


# --- tables -----------------------------------------------------------------------------------------------------------


def report(results):
    """Lines of the three tables."""
    from quantbench.statistics import median_ci

    titles = {
        "loop": "against a plain loop of torch.mm (hot, eager)",
        "do_bench": "against triton.testing.do_bench (cold)",
    }
    ways = {"loop": [("eager", "hot")], "do_bench": [("eager", "cold"), ("graph", "cold")]}
    for kind, title in titles.items():
        yield f"\nbf16 torch.mm, stopwatch {title}"
        yield f"{'m x n x k':>24}  {'theirs, us':>12}  {'ours':>14}  {'us':>12}  {'difference, %':>14}"
        for result in results:
            if result["job"]["kind"] != kind or "died" in result:
                continue
            theirs = median_ci(result["theirs_s"])[0]
            for way in ways[kind]:
                values = [row["latency_s"] for row in result["rows"] if (row["launch"], row["cache"]) == way]
                if values:
                    ours, shape = median_ci(values)[0], " x ".join(map(str, result["job"]["shape"]))
                    apart = f"{100 * (ours / theirs - 1):+.1f}"
                    yield f"{shape:>24}  {1e6 * theirs:12.1f}  {' '.join(way):>14}  {1e6 * ours:12.1f}  {apart:>14}"
    for n, k in W4A16_SHAPES:
        yield f"\nm = 1, n = {n}, k = {k}, cold, in a CUDA graph"
        yield f"{'contender':>44}  {'us':>8}  {'of fp16':>8}  {'error':>8}  kernel"
        baseline = None
        for result in results:
            job = result["job"]
            if job["kind"] != "contender" or (job["n"], job["k"]) != (n, k):
                continue
            [point] = result.get("points") or [
                {"status": "died", "reason": result["died"].splitlines()[-1:], "rows": []}
            ]
            values = [row["latency_s"] for row in point["rows"] if (row["launch"], row["cache"]) == ("graph", "cold")]
            if not values:
                yield f"{job['name']:>44}  {point['status']}: {point['reason']}"
                continue
            seconds, row = median_ci(values)[0], point["rows"][0]
            baseline = baseline or seconds
            yield (
                f"{job['name']:>44}  {1e6 * seconds:8.1f}  {baseline / seconds:7.2f}x  {row['relative_error']:8.4f}  "
                f"{row['kernel']}"
            )
    for result in results:
        if "died" in result:
            yield f"\ndied: {json.dumps(result['job'])[:300]}\n{result['died']}"
            return


if __name__ == "__main__":
    main()
