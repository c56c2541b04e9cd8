"""How long Snakemake takes to plan a study of many jobs, and how long it takes to find that nothing is to be done.

    python tests/bench/scale.py [--repeats N] [--size MODELS SCHEMES GPUS]

For the reference study (3 models, 8 schemes, 4 gpus) and a larger one (8, 10, 6), with all stages, in copies of the
checkout: a dry run and `snakemake plan` with an empty store; the run that makes tables and report from a store in which
every point stands (made up, scale_study.py), and its two steps by themselves; then the same command again, which has nothing
to do; `plan` and `usage`; and what a job costs on its node besides measuring. Prints seconds beside jobs, points and rows;
asserts nothing about them.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow" / "scripts"))

from quantbench.store import write_atomically
from quantbench.study import ROOT
from scale_study import make_checkout

SIZES = [(3, 8, 4), (8, 10, 6)]
OUTPUT = ROOT / "reports" / "bench-scale.json"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="times that each command is timed")
    parser.add_argument("--size", type=int, nargs=3, metavar="N", help="one study of so many models, schemes and gpus")
    options = parser.parse_args(argv)
    found = []
    for size in [tuple(options.size)] if options.size else SIZES:
        with tempfile.TemporaryDirectory(prefix="quantbench-scale-") as folder:
            found.append(measure(Path(folder), size, options.repeats))
    write_atomically(OUTPUT, json.dumps(found, indent=2))
    print(f"all values: {OUTPUT.relative_to(ROOT)}; load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors")


def measure(folder, size, repeats):
    """{"size", "jobs", "points", "store_files", "rows", "report_bytes", "seconds": {what: [seconds]}} of one study."""
    config = make_checkout(folder, *size)
    print("{} models x {} schemes x {} gpus".format(*size), flush=True)
    seconds = {}

    def timed(what, *arguments, times=repeats):
        for _ in range(times):
            text, taken_s = run(folder, "snakemake", *arguments)
            seconds.setdefault(what, []).append(taken_s)
        values = seconds[what]
        print(
            f"  {what:<42} {min(values):6.2f} s" + (f" to {max(values):.2f} s" if len(values) > 1 else ""), flush=True
        )
        return text

    run(folder, "snakemake", "--list-rules", "--configfile", "study.yaml")
    timed("Snakemake itself (--version)", "--version")
    empty = timed("dry run, empty store", "--dry-run", "--quiet", "rules", "--configfile", "study.yaml")
    jobs = int(re.search(r"^total\s+(\d+)", empty, re.MULTILINE)[1])
    timed("plan, empty store", "plan", "--configfile", "study.yaml")
    run(folder, str(Path(__file__).with_name("scale_study.py")), "study.yaml", python=True)
    full = timed("tables and report of the full store", "--configfile", "study.yaml", times=1)
    assert "measure_engine" not in full, full
    for what, script in (("tables alone", tables_command()), ("report alone", report_command())):
        _, taken_s = run(folder, *script, python=True)
        seconds[what] = [taken_s]
        print(f"  {what:<42} {taken_s:6.2f} s", flush=True)
    rows = sum(polars.read_parquet(table).height for table in (folder / "results/scale/tables").glob("*.parquet"))
    size = (folder / "reports" / "scale.html").stat().st_size
    print(f"  {rows:,} rows, a report of {size / 1e6:.1f} MB", flush=True)
    nothing = timed("nothing stale", "--configfile", "study.yaml")
    assert "Nothing to be done" in nothing, nothing
    timed("plan, nothing stale", "plan", "--configfile", "study.yaml", times=1)
    timed("usage", "usage", "--configfile", "study.yaml", times=1)
    # As the Slurm executor's inner srun calls it: Snakemake once more, and the job's script, which finds nothing to measure.
    job = job_arguments(config)
    timed("one job on its node, its points all there", *job, "--configfile", "study.yaml")
    manifest = folder / "results" / "scale" / "manifest.json"
    points = len(json.loads(manifest.read_text())["points"])
    files = sum(1 for _ in (folder / "results" / "store" / "points").glob("*/*"))
    print(
        f"  {jobs} jobs, {points} points, {files} files of points, largest process {peak_bytes() / 1e6:.0f} MB",
        flush=True,
    )
    return {
        "size": size,
        "jobs": jobs,
        "points": points,
        "store_files": files,
        "rows": rows,
        "report_bytes": size,
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
    }


def tables_command():
    tables = "results/scale/tables"
    return ["workflow/scripts/build_tables.py", "--manifest=results/scale/manifest.json", "--store=results/store",
            f"--output={tables}"]  # fmt: skip


def report_command():
    return ["workflow/scripts/render_report.py", "--manifest=results/scale/manifest.json", "--tables=results/scale/tables",
            "--title=?", "--output=reports/scale.html", "--summary=reports/scale.summary.json"]  # fmt: skip


def job_arguments(config):
    """Options with which an executor starts Snakemake for one job."""
    gpu, model, scheme = config["gpus"][0], config["models"][0]["name"], config["schemes"][0]
    target = f"measure_engine:study=scale,gpu={gpu},model={model},scheme={scheme}"
    return [
        "--target-jobs",
        target,
        "--allowed-rules",
        "measure_engine",
        "--force",
        "--nolock",
        "--mode",
        "remote",
        "--cores",
        "1",
    ]


def run(folder, *command, python=False):
    """(output, wall seconds) of a command in the checkout. Raises RuntimeError when it fails."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(folder / "workflow" / "scripts")
    # As anyone's second run: with its own byte code, wherever this one may write any.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, *(command if python else ("-m", *command))],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    taken_s = time.monotonic() - began
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout}")
    return ended.stdout, taken_s


def peak_bytes():
    """The largest resident set of any process so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


if __name__ == "__main__":
    main()
