"""quantbench against one `vllm bench` command per point: the same plan, model, engine arguments and environment.

    make bench            or: python tests/bench/run.py [--starts N] [--smoke] [--stock]

One study is measured by `snakemake measurements` with a store of its own, and by `vllm bench latency`, `throughput` and
`serve` (vllm_bench.py). Both several times, since a start of a process shifts what it measures (agreement.py); every
other command of theirs runs before ours and the rest after it, so a machine that becomes slower or busier favours
neither side. Prints a table and writes reports/bench.json. Nothing is asserted about time; the exit status is 1 when a
command or a point fails.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow" / "scripts"))

from agreement import compare, stage_difference, start_spread
from padded_model import pad_model
from quantbench.manifest import build_manifest, engine_arguments
from quantbench.store import write_atomically
from quantbench.study import ROOT, load_study
from quantbench.supervise import supervised
from vllm_bench import VllmBench

PLAN = Path(__file__).with_name("plan.yaml")
OUTPUT, LOGS = ROOT / "reports" / "bench.json", ROOT / "results" / "bench-logs"
# What a study needs of a checkout; the environments are linked.
CHECKOUT = ("Snakefile", "workflow", "config", "envs", "profiles", "resources")
STOCK = "`vllm bench latency` and `throughput` sample at temperature 1, quantbench takes the likeliest token"
GREEDY = "a launcher makes `vllm bench latency` and `throughput` greedy, as quantbench is (--stock leaves them alone)"
STAGES = ("latency", "throughput", "serving")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=2, metavar="N", help="times that either side measures the plan")
    parser.add_argument("--smoke", action="store_true", help="one point of each kind, to see that the benchmark works")
    parser.add_argument(
        "--stock", action="store_true", help="`vllm bench` samples at temperature 1, as it does by itself"
    )
    options = parser.parse_args(argv)
    os.chdir(ROOT)
    python = engine_python()
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="quantbench-bench-") as folder:
        result = measure(Path(folder), python, options)
    write_atomically(OUTPUT, json.dumps(result, indent=2))
    print("\n".join(["", *report(result), "", f"all values: {OUTPUT.relative_to(ROOT)}"]))


def engine_python():
    """The engine environment's interpreter, built if need be: on neither side's account."""
    command = [sys.executable, "workflow/scripts/build_env.py", "envs/engine-cpu.txt"]
    return ROOT / subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() / "bin/python"


def measure(folder, python, options):
    """Measure the plan on both sides; `folder` takes the model, the stores and copies of the checkout."""
    model = folder / "model"
    pad_model(ROOT / "resources" / "tiny" / "model", model)
    rounds = [measure_once(folder / f"start-{number}", model, python, options) for number in range(options.starts)]
    labels = [(point["stage"], point["point"]) for point in rounds[0]["points"]]
    found = [{(point["stage"], point["point"]): point for point in one["points"]} for one in rounds]
    points = [
        {"stage": label[0], "point": label[1]}
        | {side: [one[label][side] for one in found] for side in ("ours", "theirs")}
        for label in labels
    ]
    return {
        "rows": compare(points),
        "spread": {side: start_spread(points, side) for side in ("ours", "theirs")},
        "stock": options.stock,
        "rounds": [{key: value for key, value in one.items() if key != "points"} for one in rounds],
        "cores": len(os.sched_getaffinity(0)),
    }


def measure_once(folder, model, python, options):
    """One start of either side: what they measured, point by point, and what it took."""
    logs = LOGS / folder.name
    logs.mkdir()
    config = plan(model, folder / "store", options.smoke)
    study = load_study(config)
    points = [point for point in build_manifest(study)["points"] if point["stage"] in STAGES]
    (gpu,), (name,), (scheme,) = study.gpus.values(), study.models, study.schemes
    theirs = VllmBench(python, model, engine_arguments(study, name, scheme), gpu, logs, options.stock)
    load_before = os.getloadavg()[0]
    measured = {}

    def run_theirs(some):
        for point in some:
            label = describe(point["stage"], point["identity"]["params"])
            print(f"{folder.name}: vllm bench: {label}", file=sys.stderr, flush=True)
            began = time.monotonic()
            found = theirs.measure(
                point["stage"], point["identity"]["params"], label.replace(" ", "-").replace("/", "")
            )
            measured[point["key"]] = found | {"total_s": time.monotonic() - began}

    run_theirs(points[0::2])
    print(f"{folder.name}: quantbench: snakemake measurements", file=sys.stderr, flush=True)
    ours_s = run_study(config, folder / "checkout", logs)
    run_theirs(points[1::2])

    pairs = []
    for point in points:
        stored = study.store.read_point(point["key"])
        if stored is None or stored["status"] != "ok":
            raise RuntimeError(f"quantbench did not measure {point['identity']['params']}: {stored}")
        ours = our_values(point["stage"], stored["rows"])
        for metric, values in measured[point["key"]]["values"].items():
            label = f"{describe(point['stage'], point['identity']['params'])}: {metric}"
            pairs.append({"stage": point["stage"], "point": label, "ours": ours[metric], "theirs": values})
    runs = list(study.store.read_runs().values())
    walls = Counter()
    for found in measured.values():
        walls.update(found["wall_s"])
    return {
        "points": pairs,
        "point_count": len(points),
        "serving_points": sum(point["stage"] == "serving" for point in points),
        "engine_starts": {"ours": sum(run["engine_starts"] for run in runs), "theirs": len(points)},
        "ours_s": ours_s,
        "ours_parts_s": {run["stage"]: run_seconds(run) for run in runs},
        "ours_loads_s": sum(run["measured_s"] for run in runs if run["stage"].startswith("measure_")),
        "theirs_s": sum(found["total_s"] for found in measured.values()),
        "theirs_parts_s": walls,
        "load_average": {"before": load_before, "after": os.getloadavg()[0]},
        "versions": runs[0]["versions"],
    }


def plan(model, store, smoke):
    config = yaml.safe_load(PLAN.read_text())
    config["store"], config["models"][0]["source"] = str(store), str(model)
    if smoke:
        for stage in STAGES:
            config[stage] = {k: v[:1] if isinstance(v, list) else v for k, v in config[stage].items()}
    return config


def run_study(config, checkout, logs):
    """Wall seconds of `snakemake measurements` in a copy of the checkout, from its start to its end."""
    checkout.mkdir(parents=True)
    for name in CHECKOUT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "pins.json"))
        else:
            shutil.copy(source, checkout)
    (checkout / ".venvs").symlink_to(ROOT / ".venvs")
    (checkout / "study.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "measurements", "--configfile", "study.yaml"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log, began = logs / "snakemake.log", time.monotonic()
    with open(log, "wb") as file:
        status = subprocess.run(
            command, cwd=checkout, env=environment, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    wall_s = time.monotonic() - began
    shutil.copytree(checkout / "results", logs / "results")
    if status:
        raise RuntimeError(f"snakemake ended with status {status}, see {log}")
    return wall_s


def our_values(stage, rows):
    """{metric: [seconds]} of a stored point, counted as `vllm bench` counts: a request from when it was sent."""
    if stage == "latency":
        return {"latency": [row["elapsed_s"] for row in rows]}
    if stage == "throughput":
        return {"elapsed": [row["elapsed_s"] for row in rows]}
    return {
        "first token": [row["first_token_s"] - row["sent_s"] for row in rows],
        "latency": [row["finished_s"] - row["sent_s"] for row in rows],
    }


def describe(stage, params):
    size = f"{params['input_tokens']}/{params['output_tokens']}"
    if stage == "serving":
        load = f"{params['rate_per_s']:g} per s" if params["load"] == "rate" else f"concurrency {params['concurrency']}"
        return f"serving {load}, {size}"
    return f"{stage} batch {params['batch_size']}, {size}"


def run_seconds(run):
    started, ended = (datetime.fromisoformat(run[name]) for name in ("started_at", "ended_at"))
    return (ended - started).total_seconds()


def report(result):
    """Lines of the table and of the sums below it."""
    rows = result["rows"]
    width = max(len(row["point"]) for row in rows)
    head = f"{'point (tokens in/out)':{width}}  {'quantbench, ms':>22}  {'vllm bench, ms':>22}  {'difference, %':>20}"
    lines = [head, *(table_row(row, width) for row in rows), ""]
    for stage, triple in stage_difference(rows).items():
        spread = " and ".join(
            f"{side} {100 * result['spread'][side][stage][0] ** 0.5:.1f} %" for side in result["spread"]
        )
        lines.append(f"all {stage} points: {interval(triple, 100)} % apart; from one start to the next: {spread}")
    agreeing, jointly = (sum(row[key] for row in rows) for key in ("agree", "agree_jointly"))
    return [
        *lines,
        f"medians agree: {agreeing} of {len(rows)} within their own 95 % interval, so {len(rows) - agreeing} do not"
        f" ({0.05 * len(rows):.1f} would not by chance); {jointly} of {len(rows)} at 95 % for all together",
        "",
        *(line for number, one in enumerate(result["rounds"]) for line in sums(one, number)),
        f"{result['cores']} cores. An interval is of the median over starts, {len(result['rounds'])} of either side; the"
        " variance between starts is pooled over a stage's points.",
        "Both: the same checkpoint, engine arguments, environment, lengths, batch sizes, repeats, request counts, arrival"
        " times; the offline engine in one process. A request counts from when it was sent.",
        "Not the same: " + (STOCK if result["stock"] else GREEDY) + "; only quantbench probes the device; `vllm bench"
        " throughput` times the first batch of its size, and `vllm bench serve` looks for a proxy and a .netrc in two threads"
        " while a request's clock runs (alternate.py compares without either).",
    ]


def table_row(row, width):
    ours, theirs, difference = (
        interval(row["ours"], 1e3),
        interval(row["theirs"], 1e3),
        interval(row["difference"], 100),
    )
    verdict = "" if row["agree"] else "  apart" if row["agree_jointly"] else "  APART"
    return f"{row['point']:{width}}  {ours:>22}  {theirs:>22}  {difference:>20}{verdict}"


def sums(one, number):
    """What one start of either side took."""
    ours_s, theirs_s, parts = one["ours_s"], one["theirs_s"], one["theirs_parts_s"]
    # Had they kept one server for all serving points, each further start would be saved.
    servers = max(one["serving_points"], 1)
    shared_s = theirs_s - parts.get("servers", 0) * (servers - 1) / servers
    own, loads, starts = one["ours_parts_s"], one["load_average"], one["engine_starts"]
    rest_s = ours_s - sum(own.values())
    return [
        f"start {number}: {one['point_count']} points; quantbench {ours_s:.0f} s and {starts['ours']} engine starts, vllm"
        f" bench {theirs_s:.0f} s and {starts['theirs']}; ratio {theirs_s / ours_s:.1f}",
        f"  quantbench, one `snakemake measurements` from a bare store: {parted(own)}, Snakemake, staging and imports"
        f" {rest_s:.0f} s; the points themselves took {one['ours_loads_s']:.0f} s of it",
        f"  vllm bench, one command per point: {parted(parts)} (servers: a `vllm serve` started and stopped for each"
        f" serving point); with one server for all of them {shared_s:.0f} s, ratio {shared_s / ours_s:.1f}",
        f"  load average {loads['before']:.1f} before and {loads['after']:.1f} after",
    ]


def interval(triple, factor):
    median, low, high = (factor * value for value in triple)
    return f"{median:.1f} [{low:.1f}, {high:.1f}]"


def parted(seconds):
    return ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())


if __name__ == "__main__":
    supervised(main)
