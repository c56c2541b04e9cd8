"""quantbench and `vllm bench`, turn and turn about on the same running engine and the same running server.

    make bench            or: ENGINE_PYTHON tests/bench/alternate.py [--rounds N] [--stage NAME] [--stock] [--smoke]

run.py compares whole commands, each with processes of its own; on a few cores a start moves all that it measures by
several percent. Here a round is one measurement by either side, back to back, and rounds begin with either side in turn:
what the machine does meanwhile, both see. The engine and the server are quantbench's; on them work

    latency, throughput   Session.latency and .throughput     `main` of vllm.benchmarks.latency and .throughput, to which
                                                              LLM.from_engine_args hands the engine that is there
    serving               quantbench's client                 `main` of vllm.benchmarks.serve in a process of its own,
                                                              with the same arrival times and warm-up requests

Two things of theirs are made like ours, which --stock leaves as they are: the offline commands sample at temperature 1
(greedy_vllm.py); and `vllm bench serve`, whose HTTP session trusts the environment, has a thread look for a .netrc and
another for a proxy after a request's clock has started, which is the client's time and none of the server's, and sends
apart what was due at once.

Prints a table and writes reports/bench-alternate.json. Nothing is asserted about time.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow" / "scripts"))

from agreement import SIDES, compare_rounds
from padded_model import pad_model
from quantbench.engine.server import SERVED_NAME, start_server
from quantbench.engine.settings import engine_environment
from quantbench.lengths import Prompts
from quantbench.load import read_token_ids, warm_up_requests
from quantbench.store import write_atomically
from quantbench.supervise import supervised
from vllm_bench import serve_arguments, write_trace

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "reports" / "bench-alternate.json"
PLAN = Path(__file__).with_name("plan.yaml")
CPU = {"environment": "engine-cpu"}

# How far apart the two sides may be: medians of batches, percentiles of requests.
LIMITS = {"latency": 0.01, "throughput": 0.01, "serving": 0.03}
PERCENTILES = (50, 90, 99)
ROUNDS = 24
# Passes of a round, and those before it: the side before may have left another shape in the caches.
PASSES, WARM_UP_PASSES = 10, 2
LENGTHS = {"input_tokens": 64, "output_tokens": 16}
POINTS = (
    ("latency", {"batch_size": 1, **LENGTHS}),
    ("latency", {"batch_size": 4, "input_tokens": 64, "output_tokens": 48}),
    ("latency", {"batch_size": 16, "input_tokens": 256, "output_tokens": 16}),
    ("throughput", {"batch_size": 64, **LENGTHS}),
    ("serving", {"load": "rate", "rate_per_s": 16.0, "requests": 64, "seed": 0, **LENGTHS}),
    ("serving", {"load": "concurrency", "concurrency": 4, "requests": 100, "seed": 0, **LENGTHS}),
)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"of every point, {ROUNDS} by default")
    parser.add_argument("--stage", choices=LIMITS, help="its points alone")
    parser.add_argument("--stock", action="store_true", help="`vllm bench` as it is")
    parser.add_argument("--smoke", action="store_true", help="two rounds of a few points, to see that it works")
    options = parser.parse_args(argv)
    points = [POINTS[0], *POINTS[3:5]] if options.smoke else POINTS
    points = [point for point in points if options.stage in (None, point[0])]
    rounds = 2 if options.smoke else options.rounds
    os.environ.update(engine_environment(CPU))
    with tempfile.TemporaryDirectory(prefix="quantbench-alternate-") as folder:
        rows = measure(Path(folder), points, rounds, options.stock)
    result = {"rows": rows, "stock": options.stock, "cores": len(os.sched_getaffinity(0))}
    write_atomically(OUTPUT, json.dumps(result, indent=2))
    print("\n".join(["", *table(rows), "", f"all values: {os.path.relpath(OUTPUT)}"]))


def measure(folder, points, rounds, stock):
    """Rows of agreement.compare_rounds, one for each point and what is compared of it."""
    model = folder / "model"
    pad_model(ROOT / "resources" / "tiny" / "model", model)
    # As a study's engine: config/README.md and manifest.engine_arguments.
    engine_args = yaml.safe_load(PLAN.read_text())["engine"] | {"enable_prefix_caching": False, "seed": 0}
    offline = [point for point in points if point[0] != "serving"]
    serving = [point for point in points if point[0] == "serving"]
    found = []
    if offline:
        with worker(start_engine, str(model), engine_args, str(folder), stock) as engine:
            found += [(*point, alternate(*point, rounds, {side: engine for side in SIDES})) for point in offline]
    if serving:
        with (
            worker(start_client, str(model), str(folder), stock) as ours,
            worker(start_client, str(model), str(folder), stock) as theirs,
            start_server(model, engine_args, folder / "server.log", CPU) as server,
        ):
            server.wait_until_ready()
            at, workers = {"url": server.url, "headers": server.headers}, {"ours": ours, "theirs": theirs}
            found += [(*point, alternate(point[0], point[1] | at, rounds, workers)) for point in serving]
    return [
        {"stage": stage, "point": f"{describe(stage, params)}: {quantity}", **compare_rounds(values, LIMITS[stage])}
        for stage, params, one in found
        for quantity, values in quantities(stage, one).items()
    ]


def worker(start, *arguments):
    """One process of its own that remembers what `start` made, for as long as a block lasts."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=spawn, initializer=start, initargs=arguments)


def alternate(stage, params, rounds, workers):
    """[{"ours": {metric: [seconds]}, "theirs": ...}] of each round; one that nobody records goes ahead."""
    print(f"{describe(stage, params)}: {rounds} rounds", file=sys.stderr, flush=True)
    found = []
    for number in range(-1, rounds):
        order = SIDES if number % 2 else SIDES[::-1]
        one = {side: workers[side].submit(globals()[f"{side}_{stage}"], params).result() for side in order}
        found += [one] if number >= 0 else []
    return found


def quantities(stage, rounds):
    """{what: {"ours": [one number of each round], "theirs": ...}}: medians, of requests percentiles as well."""
    percentiles = PERCENTILES if stage == "serving" else (50,)
    return {
        f"p{q} {metric}" if stage == "serving" else f"median {metric}": {
            side: [float(np.percentile(one[side][metric], q)) for one in rounds] for side in SIDES
        }
        for metric in rounds[0]["ours"]
        for q in percentiles
    }


# --- one engine, both sides -------------------------------------------------------------------------------------------

STATE = {}


def start_engine(model, engine_args, folder, stock):
    into_log(folder)
    from greedy_vllm import generate_greedily
    from quantbench.engine.session import Session
    from vllm import LLM

    STATE.update(session=Session(model, engine_args), model=model, folder=Path(folder))
    LLM.from_engine_args = classmethod(lambda cls, _: STATE["session"].llm)
    if not stock:
        LLM.generate = generate_greedily


def ours_latency(params):
    rows = STATE["session"].latency(**params, repeats={"least": PASSES, "most": PASSES})
    return {"latency": [row["elapsed_s"] for row in rows]}


def ours_throughput(params):
    prompts = Prompts(read_token_ids(STATE["model"]))
    rows = STATE["session"].throughput(**params, repeats={"least": 1, "most": 1}, prompts=prompts)
    return {"elapsed": [row["elapsed_s"] for row in rows]}


def theirs_latency(params):
    arguments = [
        f"--input-len={params['input_tokens']}",
        f"--output-len={params['output_tokens']}",
        f"--batch-size={params['batch_size']}",
        f"--num-iters={PASSES}",
        f"--num-iters-warmup={WARM_UP_PASSES}",
        "--disable-detokenize",
    ]
    return {"latency": vllm_bench("latency", arguments)["latencies"]}


def theirs_throughput(params):
    arguments = [
        "--dataset-name=random",
        f"--random-input-len={params['input_tokens']}",
        f"--random-output-len={params['output_tokens']}",
        f"--num-prompts={params['batch_size']}",
        # They are submitted all at once: more would warm up another batch size.
        f"--num-warmups={params['batch_size']}",
        "--disable-detokenize",
    ]
    return {"elapsed": [vllm_bench("throughput", arguments)["elapsed_time"]]}


def vllm_bench(name, arguments):
    """What `vllm bench latency` or `throughput` writes as JSON, run here on the engine that is there."""
    output = STATE["folder"] / f"{name}.json"
    module = run_main(name, [f"--model={STATE['model']}", f"--output-json={output}", *arguments])
    module.main(STATE["arguments"])
    return json.loads(output.read_text())


def run_main(name, arguments):
    """vllm.benchmarks.<name>, its command line parsed into STATE["arguments"]."""
    import importlib

    from vllm.utils.argparse_utils import FlexibleArgumentParser

    module, parser = importlib.import_module(f"vllm.benchmarks.{name}"), FlexibleArgumentParser()
    module.add_cli_args(parser)
    STATE["arguments"] = parser.parse_args(arguments)
    return module


# --- one server, a client of either side ------------------------------------------------------------------------------


def start_client(model, folder, stock):
    into_log(folder)
    import aiohttp

    STATE.update(model=model, folder=Path(folder))
    session = aiohttp.ClientSession
    if not stock:
        aiohttp.ClientSession = lambda **options: session(**options | {"trust_env": False})


def ours_serving(params):
    from quantbench.engine.client import Client

    async def load():
        prompts = Prompts(read_token_ids(STATE["model"]))
        async with Client(params["url"], SERVED_NAME, params["headers"], prompts) as client:
            return await client.measure({k: v for k, v in params.items() if k not in ("url", "headers")})

    rows = asyncio.run(load())
    check([row["error"] for row in rows], params)
    return {
        "first token": [row["first_token_s"] - row["sent_s"] for row in rows],
        "each further token": [(row["finished_s"] - row["first_token_s"]) / (row["output_tokens"] - 1) for row in rows],
        "latency": [row["finished_s"] - row["sent_s"] for row in rows],
    }


def theirs_serving(params):
    folder = STATE["folder"]
    write_trace(params, folder / "trace.jsonl")
    arguments = serve_arguments(params, "serve", params["url"], folder / "trace.jsonl", folder)
    arguments += [f"--num-warmups={warm_up_requests(params)}", f"--model={STATE['model']}"]
    arguments += [f"--served-model-name={SERVED_NAME}"]
    arguments += [f"--header={name}={value}" for name, value in params["headers"].items()]
    run_main("serve", arguments).main(STATE["arguments"])
    result = json.loads((folder / "serve.json").read_text())
    check(result["errors"], params)
    tokens = [count - 1 for count in result["output_lens"]]
    rest = [sum(gaps) for gaps in result["itls"]]
    return {
        "first token": result["ttfts"],
        "each further token": [gaps / count for gaps, count in zip(rest, tokens, strict=True)],
        "latency": [first + gaps for first, gaps in zip(result["ttfts"], rest, strict=True)],
    }


def check(errors, params):
    failed = [error for error in errors if error]
    if failed or len(errors) != params["requests"]:
        raise RuntimeError(f"{len(failed)} of {len(errors)} requests failed: {failed[:1]}")


def into_log(folder):
    """All that this process says goes to a file of its own."""
    log = os.open(Path(folder) / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)


# --- the table --------------------------------------------------------------------------------------------------------


def describe(stage, params):
    size = f"{params['input_tokens']}/{params['output_tokens']}"
    if stage != "serving":
        return f"{stage} batch {params['batch_size']}, {size}"
    load = f"{params['rate_per_s']:g} per s" if params["load"] == "rate" else f"concurrency {params['concurrency']}"
    return f"serving {load}, {size}"


def table(rows):
    width = max(len(row["point"]) for row in rows)
    lines = [f"{'point (tokens in/out)':{width}}  {'quantbench':>10}  {'vllm bench':>10}  {'difference, %':>21}"]
    for row in rows:
        times = "  ".join(f"{1e3 * row[side]:7.2f} ms" for side in SIDES)
        value, low, high = (100 * part for part in row["difference"])
        interval = f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(f"{row['point']:{width}}  {times}  {interval:>21}  {row['verdict']}")
    counts = [row["verdict"].split()[0] for row in rows]
    said = ", ".join(f"{counts.count(word)} {word}" for word in dict.fromkeys(counts))
    return [
        *lines,
        "",
        f"{len(rows)} pairs: {said}; times are medians over rounds, intervals 95 % of the median ratio",
    ]


if __name__ == "__main__":
    supervised(main)
