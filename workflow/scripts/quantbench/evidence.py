"""The report's tables below the charts: kernels that really ran, what is missing and why, and provenance.

Each function takes the manifest and the tables (polars frames by name) and returns plain dicts for the template.
"""

import json
import re

import polars as pl

from quantbench import display
from quantbench.start_phases import PHASES, TOTAL

STATES = {
    "unsupported": "unsupported",
    "out_of_memory": "out of memory",
    "timeout": "timed out",
    "invalid": "invalid",
    "skipped": "skipped",
    "missing": "not measured yet",
}
# Tables whose rows are points of the study; the others describe runs and devices.
STAGES = (
    "kernels",
    "latency",
    "throughput",
    "serving",
    "search",
    "accuracy",
    "perplexity",
    "fidelity",
    "gemm",
    "sensitivity",
)
# What provenance.py puts behind the commit of a checkout with changed files.
CHANGED = "+changed"
# More runs than this start folded: they are for looking things up.
FOLDED_RUNS = 12
STAGE_NAMES = {"kernels": "loading", "load": "loading", "gemm": "matrix products"}
VERDICTS = {
    "as_promised": ("good", "as promised"),
    "computes_other": ("bad", ""),
    "unquantized": ("bad", ""),
    "emulated": ("warn", ""),
}


def kernels_that_ran(manifest, tables):
    """Groups by gpu and model; a row per scheme, kernel and where it was read."""
    rows = _rows(tables, "kernels", ok=True)
    seen = {}
    for row in rows:
        where = (row["gpu"], row["model"])
        what = (row["scheme"], row["kernel"], row["computes"], row["expected"], row["verdict"])
        entry = seen.setdefault(where, {}).setdefault(what, {"layers": {}, "stages": []})
        entry["layers"][row["layer_kind"]] = row["layers"]
        if row["stage"] not in entry["stages"]:
            entry["stages"].append(row["stage"])
    groups = []
    for (gpu, model), entries in _by_study(manifest, seen):
        shown = []
        for (scheme, kernel, computes, expected, verdict), entry in entries.items():
            tone, words = VERDICTS.get(verdict, ("warn", "not known what it computes"))
            if verdict == "computes_other":
                words = f"computes {computes} instead of {expected}"
            elif verdict == "unquantized":
                words = f"silently ran unquantized instead of {expected}"
            elif verdict == "emulated":
                words = f"computes the numbers of {expected} without a kernel: never timed"
            elif verdict == "as_promised":
                # Layers that a scheme ignores, such as lm_head, are promised in the model's own type.
                left = computes != manifest["schemes"][scheme]["computes"]
                words = f"{'left in' if left else 'computes'} {computes}, as promised"
            counts = list(entry["layers"].values())
            if len(counts) > 1 and len(set(counts)) == 1:
                layers = f"{counts[0]} each of {display.listed(entry['layers'])}"
            else:
                layers = ", ".join(f"{count} × {kind}" for kind, count in entry["layers"].items())
            row = {"scheme": scheme, "kernel": kernel, "layers": layers, "stage": display.listed(entry["stages"])}
            shown.append({**row, "tone": tone, "verdict": words})
        shown.sort(key=lambda row: _place(manifest["study"]["schemes"], row["scheme"]))
        groups.append({"heading": f"{gpu} · {model}", "at": {"gpu": gpu, "model": model}, "rows": shown})
    return groups


def missing(manifest, tables):
    """Groups by gpu and model of what gave no numbers: skipped by the plan, or measured with a status other than ok."""
    found = {}

    def add(row, kind, stage):
        # The engine ends the same message with one full stop here and two there.
        reason = re.sub(r"(?<!\.)\.\.(?!\.)", ".", row["reason"] or "")
        what = found.setdefault((row["gpu"], row["model"]), {}).setdefault((row["scheme"], kind, reason), [])
        what.append(STAGE_NAMES.get(stage, stage))

    for skip in manifest["skips"]:
        if skip["model"] in manifest["models"]:
            add(skip, "skipped", skip["stage"])
    for table in STAGES:
        emulated = {_variant(row) for row in _rows(tables, table, ok=True) if row.get("emulated")}
        for row in _rows(tables, table, ok=False):
            if table != "kernels" and _variant(row) in emulated and not row["emulated"]:
                continue
            # Without a run nothing was tried: the tables repeat the plan's skips, which stand above already. One
            # throttled repeat is no missing point. Kernels beside the study's variants have a section of their own.
            a_point = row["run_id"] is not None and row.get("repeat") is None
            if a_point and row["scheme"] is not None and row["model"] in manifest["models"]:
                add(row, row["status"], table)
    groups = []
    for (gpu, model), entries in _by_study(manifest, found):
        rows = [
            {
                "scheme": scheme,
                "kind": kind,
                "badge": STATES.get(kind, kind),
                "reason": reason,
                "what": _counted(stages),
            }
            for (scheme, kind, reason), stages in entries.items()
        ]
        rows.sort(key=lambda row: (_place(manifest["study"]["schemes"], row["scheme"]), row["kind"]))
        at = {name: value for name, value in (("gpu", gpu), ("model", model)) if value}
        groups.append({"heading": " · ".join(at.values()), "at": at, "rows": rows})
    return groups


def _variant(row):
    return row["gpu"], row["model"], row["scheme"]


def _counted(stages):
    counts = {stage: stages.count(stage) for stage in dict.fromkeys(stages)}
    return ", ".join(
        stage if count == 1 or stage == "loading" else f"{stage} ({count} points)" for stage, count in counts.items()
    )


def provenance(manifest, tables):
    """The parts of the last section: checkpoints, runs, and how to make it again."""
    runs = _rows(tables, "runs")
    commits = list(dict.fromkeys(run["commit"] for run in runs if run["commit"]))
    starts = _starts(_rows(tables, "starts"))
    return [*_checkpoints(manifest, tables), *_runs(runs), *starts, *_again(manifest, commits)]


def _checkpoints(manifest, tables):
    described = {name: scheme.get("description", "") for name, scheme in manifest["schemes"].items()}

    def place(row):
        return list(manifest["models"]).index(row["model"]), _place(manifest["study"]["schemes"], row["scheme"])

    rows = [
        [
            row["scheme"],
            row["model"],
            (row["checkpoint_key"] or display.MISSING)[:12],
            (row["calibration_key"] or display.MISSING)[:12],
            display.seconds(row["quantize_s"]),
            display.amount(row["peak_memory_bytes"], "B"),
            described.get(row["scheme"], ""),
        ]
        for row in sorted(_rows(tables, "checkpoints"), key=place)
    ]
    columns = ["scheme", "model", "checkpoint key", "calibration key", "quantized in", "peak memory", "what it is"]
    sources = "; ".join(
        f"{name}: {model['source']}, key {model['key'][:12]}" for name, model in manifest["models"].items()
    )
    return [{"title": "Checkpoints", "note": f"Models: {sources}.", "columns": columns, "rows": rows}] if rows else []


def _runs(runs):
    rows = []
    for run in sorted(runs, key=lambda run: (run["gpu"] or "", run["started_at"] or "")):
        versions = json.loads(run["versions"] or "{}")
        said = ", ".join(f"{name} {version}" for name, version in versions.items())
        cells = [run["run_id"], run["stage"], run["gpu"], run["device_name"], run["driver"], said]
        cells += [
            (run["commit"] or display.MISSING)[:10],
            (run["started_at"] or "")[:19].replace("T", " "),
            run["host"],
        ]
        rows.append([cell or display.MISSING for cell in cells])
    columns = ["run", "stage", "gpu", "device", "driver", "versions", "commit", "started (UTC)", "host"]
    note = "One row per process that measured. Engine arguments, clocks and logs are in tables/runs.csv."
    part = {"title": "Runs", "note": note, "columns": columns, "rows": rows, "folded": len(rows) > FOLDED_RUNS}
    return [part] if rows else []


def _starts(rows):
    """A row per start of an engine or server, a column per phase."""
    runs, phases = {}, [TOTAL, *PHASES]
    for row in rows:
        place = tuple(row[name] or display.MISSING for name in ("run_id", "stage", "gpu", "model", "scheme"))
        runs.setdefault(place, {})[row["phase"]] = row["elapsed_s"]
    shown = [[*place[1:], *(display.seconds(took.get(phase)) for phase in phases)] for place, took in runs.items()]
    note = (
        "Time until an engine or a server was ready, imports not counted for an engine; below it what vLLM's log says of it: "
        "loading the weights, then initializing, of which compilation and the capture of CUDA graphs are parts. A dash: the "
        "log says nothing of it."
    )
    columns = ["stage", "gpu", "model", "scheme", *phases]
    part = {
        "title": "Engine starts",
        "note": note,
        "columns": columns,
        "rows": shown,
        "folded": len(shown) > FOLDED_RUNS,
    }
    return [part] if shown else []


def _again(manifest, commits):
    study = manifest["study"]
    note = "Measurements that the store has are not repeated; with an empty store everything is."
    if len(commits) > 1:
        note += f" The runs above come from {len(commits)} commits; this is the last one."
    if any(commit.endswith(CHANGED) for commit in commits):
        note += " Some ran with files changed after that commit: those changes are not on record."
    at = f"git checkout {commits[-1].removesuffix(CHANGED)}\n" if commits else ""
    # The target first: --configfile takes every word behind it.
    code = f"{at}snakemake report --configfile config/{study['study']}.yaml"
    config = json.dumps(study, indent=1, ensure_ascii=False)
    return [
        {"title": "Make it again", "note": note, "code": code},
        {"title": "The study's config, with its defaults filled in", "note": None, "code": config, "folded": True},
    ]


def _by_study(manifest, groups):
    """Items of {(gpu, model): ...} in the study's order."""
    study = manifest["study"]
    models = [model["name"] for model in study["models"]]
    return sorted(groups.items(), key=lambda item: (_place(study["gpus"], item[0][0]), _place(models, item[0][1])))


def _place(names, name):
    return names.index(name) if name in names else len(names)


def _rows(tables, table, ok=None):
    frame = tables.get(table)
    if frame is None:
        return []
    if ok is not None:
        is_ok = pl.col("status") == "ok"
        frame = frame.filter(is_ok if ok else ~is_ok)
    return frame.to_dicts()
