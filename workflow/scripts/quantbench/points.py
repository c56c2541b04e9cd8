"""Points: their stages, and how a job's compact text unfolds into identities. Light, since every script imports it."""

import os

from quantbench.errors import UserError
from quantbench.keys import key

# Raised by hand, with the reason beside it, when what is measured changes: it costs exactly that stage's points.
PROTOCOL = {
    "load": 1,
    # 2: rates as the best over several shapes; what else the node has is recorded
    "probe": 2,
    "support": 1,
    # 2: hot and cold caches, graph and eager launches
    "gemm": 2,
    # 2: warmed up until a pass is no faster than the one before, and a new engine for seconds; one pass was too little
    "latency": 2,
    "throughput": 2,
    # 2: a new server is warmed up for longer
    # 3: the times between tokens are kept, requests go out to the tenth of a millisecond, and a client that lags is told
    "serving": 3,
    "search": 1,
    # 2: each answer's text, length and end are kept
    "accuracy": 2,
    "perplexity": 1,
    "reference": 1,
    "fidelity": 1,
    "sensitivity": 1,
}

# Which job measures which stage: one engine start serves a variant's engine stages, one server start its serving points.
JOB_OF_STAGE = {
    "probe": "probe_gpu",
    "support": "ask_support",
    "gemm": "measure_gemm",
    "load": "measure_engine",
    "latency": "measure_engine",
    "throughput": "measure_engine",
    "accuracy": "measure_engine",
    "perplexity": "measure_engine",
    "reference": "measure_engine",
    "fidelity": "measure_engine",
    "serving": "measure_serving",
    "sensitivity": "measure_sensitivity",
    "search": "measure_serving",
}
# Jobs of a whole device; the others are of a variant on a device.
DEVICE_JOBS = ("probe_gpu", "ask_support", "measure_gemm")
# Jobs about a checkpoint, on no device in particular: they run where quantizing does. Their points have gpu None.
CHECKPOINT_JOBS = ("quantize_model", "measure_sensitivity")
# Jobs about a device that run where Snakemake does: they take none of its time.
LOGIN_JOBS = ("ask_support",)
# From so many points asked for in one folder of the store it is listed: on a network file system each look at one file is a
# question to a server, a list is one for all.
LISTED = 4
# What tells a job's points apart, besides their parameters.
GROUP_FIELDS = ("stage", "protocol", "versions", "format", "contender")


def expand(job):
    """[{"identity", "key", "stage", "params", ...}] of every point of a job, in the job's order."""
    points = []
    for group in job["groups"]:
        varying = {name: group[name] for name in GROUP_FIELDS if name in group}
        for parameters in group["params"]:
            identity = job["common"] | varying | {"params": parameters}
            points.append({**group, "params": parameters, "identity": identity, "key": key(identity)})
    return points


def job_of(point):
    """(rule, target) of the job that makes a point of the manifest; target is (gpu, model, scheme), the last two None for jobs
    of a whole device. Of a second or emulated start, scheme is its start_label."""
    name = JOB_OF_STAGE[point["stage"]]
    if name in DEVICE_JOBS:
        return name, (point["gpu"], None, None)
    return name, (point["gpu"], point["model"], start_label(point["scheme"], point.get("start"), point.get("emulated")))


def lacking(points, store):
    """Keys of those of these points that the store lacks, as a set."""
    shards = {}
    found = {p["key"] for p in points if p["stage"] == "reference" and not is_measured(p, store)}
    for key_ in {point["key"] for point in points} - found:
        shards.setdefault(store.point_path(key_).parent, []).append(key_)
    for folder, asked in shards.items():
        if len(asked) < LISTED:
            found |= {key_ for key_ in asked if not store.has_point(key_)}
            continue
        try:
            there = set(os.listdir(folder))
        except FileNotFoundError:
            there = set()
        found |= {key_ for key_ in asked if store.point_path(key_).name not in there}
    return found


def missing_points(job, store):
    """The job's points that the store lacks."""
    return [point for point in expand(job) if not is_measured(point, store)]


def is_measured(point, store):
    """Whether the store has all of a point: of the baseline's distributions also the files that others are compared with."""
    if point["stage"] != "reference" or store.has_folder("references", point["key"]):
        return store.has_point(point["key"])
    record = store.read_point(point["key"])
    return record is not None and record["status"] != "ok"


def start_label(scheme, start, emulated=False):
    """What a variant's engine start is called in paths and plans: the scheme; of a second one `<scheme>+2`, of one whose
    kernels are emulated `<scheme>+emulated`."""
    if emulated:
        return f"{scheme}+emulated"
    return scheme if start in (None, 1) else f"{scheme}+{start}"


def check_versions(points, installed):
    """Raise UserError where the interpreter has other versions than the points' identities say they are measured with."""
    for point in points:
        for name, version in point["versions"].items():
            found = installed.get(name)
            # The CPU build of vLLM carries no local version of its own, torch's does.
            if found != version:
                raise UserError(
                    f"{name} {found} is installed, but the study's environment pins {version}; rebuild it, or correct the "
                    "`versions` that config/cluster.yaml states for it"
                )


def lacking_layers(manifest, store):
    """Entries of the manifest's `layers` whose checkpoint the store has, but not them."""
    return [
        point
        for point in manifest.get("layers", [])
        if not store.has_point(point["key"]) and store.has_folder("checkpoints", point["identity"]["checkpoint"])
    ]
