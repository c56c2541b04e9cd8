"""config/cluster.yaml: where a job runs on a site's cluster, and what it asks Slurm for. Pure but for reading that file.

A job's resources are those that snakemake-executor-plugin-slurm 2.8 honours: slurm_partition, slurm_account, qos,
constraint, gres, slurm_extra, cpus_per_task, mem_mb (its MB are Slurm's, of 2^20 bytes) and runtime (minutes). None of them
is ever part of a key. Snakemake drops a resource that is None, so sbatch is not asked for it; without a partition the
plugin takes the one that sinfo marks as the default, without an account it lets sacct guess one.
"""

import json
import math
import re
import string
from pathlib import Path

from quantbench.errors import UserError
from quantbench.points import CHECKPOINT_JOBS
from quantbench.validation import check, nearest, read_yaml, with_defaults

SCHEMA = Path(__file__).parents[2] / "schemas" / "cluster.schema.json"
NAME = "config/cluster.yaml"
# What a place asks for where the file is silent; an engine wants cores beside the one that drives its device.
NOTHING = {
    "partition": None,
    "account": None,
    "qos": None,
    "constraint": None,
    "gres": None,
    "extra": None,
    "cpus": 8,
    "hours": None,
    "memory_bytes": None,
    "most_hours": None,
    "most_memory_bytes": None,
}
TEXTS = ("partition", "account", "qos", "constraint", "gres", "extra")
RESOURCES = {
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "qos",
    "constraint": "constraint",
    "gres": "gres",
    "extra": "slurm_extra",
    "cpus": "cpus_per_task",
}
# How far a job may run over what is expected of it. Of what has been measured, other tenants of the file system and the node
# account; a guess is off by a factor. Asking for too much costs waiting in the queue, for too little a second start.
TIME_MARGINS = {"measured": 2.0, "guess": 4.0}
# A first import of torch from a cold shared file system alone takes minutes.
LEAST_S = 30 * 60
MEMORY_MARGIN = 1.25
# At each retry: a job that was cut off goes on with the points that it lacks, one that was killed for memory does not.
GROWTH = {"time": 2.0, "memory": 1.5}
# What the plugin takes as --gres (utils.py, set_gres_string); a type with a hyphen, or a list, has to go another way.
PLAIN_GRES = re.compile(r"[a-zA-Z0-9_]+(:[a-zA-Z0-9_.]+)?(:\d+[TGM]?)?")


def load_cluster(path, gpus=()):
    """The checked file with its defaults filled in; of a file that is not there, those of an empty one.

    gpus   names of config/gpus.yaml
    Raises UserError: key, and what would be valid.
    """
    schema = json.loads(SCHEMA.read_text())
    value = read_yaml(path) if Path(path).exists() else {}
    value = {} if value is None else value
    check(value, SCHEMA, NAME)
    cluster = with_defaults(value, schema)
    faults = []
    for name in cluster["gpus"]:
        if gpus and name not in (*gpus, "default"):
            faults.append(f"gpus: unknown name {name!r}{nearest(name, [*gpus, 'default'])}")
    like = cluster["quantize"]["like"]
    if like and gpus and like not in gpus:
        faults.append(f"quantize.like: unknown gpu {like!r}{nearest(like, gpus)}")
    places = {"defaults": cluster["defaults"], "quantize": cluster["quantize"]}
    places |= {f"gpus.{name}": place for name, place in cluster["gpus"].items()}
    for where, place in places.items():
        faults += [f"{where}.{name}: {fault}" for name in TEXTS if (fault := _text_fault(name, place.get(name)))]
    if faults:
        raise UserError("\n".join([f"{NAME} is not valid:", *[f"  - {fault}" for fault in faults]]))
    return cluster


def placement(cluster, rule, gpu=None, devices=1):
    """What a job of `rule` on `gpu` asks for, each key decided by the narrowest place that has it; {gpu} and {devices} filled
    in."""
    if rule in CHECKPOINT_JOBS:
        own = {name: value for name, value in cluster["quantize"].items() if name != "like"}
        gpu = cluster["quantize"]["like"]
        found = (placement(cluster, None, gpu) if gpu else NOTHING | cluster["defaults"]) | own
    else:
        gpus = cluster["gpus"]
        found = NOTHING | cluster["defaults"] | gpus.get("default", {}) | gpus.get(gpu, {})
    names = {"{gpu}": gpu or "", "{devices}": str(devices)}
    return found | {name: _filled(found[name], names) for name in TEXTS if found[name]}


def resources(cluster, rule, gpu=None, estimate=None, attempt=1, devices=1):
    """{Snakemake resource: value or None} of a job.

    estimate   estimate.Estimate of the job; without one, time and memory are only those that the file states
    attempt    1 at first, one more at each retry
    devices    of that gpu that the job takes
    """
    place = placement(cluster, rule, gpu, devices)
    found = {RESOURCES[name]: place[name] for name in RESOURCES}
    gres = place["gres"]
    if gres and not PLAIN_GRES.fullmatch(gres):
        # Of one node, as gres is; the plugin leaves this option to its user.
        gpus = ",".join(part.removeprefix("gpu:") for part in gres.split(","))
        found |= {"gres": None, "slurm_extra": " ".join(filter(None, [place["extra"], f"--gpus-per-node={gpus}"]))}
    seconds, memory_bytes = requests(place, estimate, attempt)
    found["runtime"] = seconds and math.ceil(seconds / 60)
    found["mem_mb"] = memory_bytes and math.ceil(memory_bytes / 2**20)
    return found


def requests(place, estimate, attempt=1):
    """(seconds, bytes) to ask for: what the place states, or the estimate with its margin; grown by attempts, at most its most."""
    seconds = place["hours"] and place["hours"] * 3600
    memory_bytes = place["memory_bytes"]
    if estimate and not seconds:
        seconds = max(LEAST_S, estimate.seconds * TIME_MARGINS[estimate.basis])
    if estimate and not memory_bytes:
        memory_bytes = estimate.memory_bytes * MEMORY_MARGIN
    most_s = place["most_hours"] and place["most_hours"] * 3600
    return (
        _grown(seconds, GROWTH["time"], attempt, most_s),
        _grown(memory_bytes, GROWTH["memory"], attempt, place["most_memory_bytes"]),
    )


def misfits(cluster, estimates, attempts):
    """Sentences on the jobs that the site's limits leave no way to: {(rule, target): Estimate} and how often each may start.

    A job that is cut off has kept its points and goes on at the next attempt: only what all attempts together can't do, or
    one that could not even start, does not fit. Memory has no second chance.
    """
    found = []
    for (rule, target), estimate in estimates.items():
        gpu = None if rule in CHECKPOINT_JOBS else target[0]
        place = placement(cluster, rule, gpu)
        name = "/".join([rule, *filter(None, target)])
        key = "quantize" if rule in CHECKPOINT_JOBS else f"gpus.{gpu}"
        most_s = (place["most_hours"] or math.inf) * 3600
        # One that keeps nothing until its end has to end in one attempt.
        whole = estimate.seconds if rule == "quantize_model" else estimate.seconds / attempts
        if max(whole, estimate.start_s) > most_s:
            found.append(
                f"{name} takes about {estimate.seconds / 3600:.1f} h ({estimate.basis}), but {key} allows {place['most_hours']:g} h "
                f"at a time (most_hours in {NAME}) and {attempts} attempts"
            )
        if estimate.memory_bytes > (place["most_memory_bytes"] or math.inf):
            found.append(
                f"{name} takes about {estimate.memory_bytes / 1e9:.0f} GB of host memory, but {key} allows "
                f"{place['most_memory_bytes'] / 1e9:.0f} GB (most_memory_bytes in {NAME})"
            )
    return found


def too_few_devices(cluster, gpus, devices):
    """Sentences on gpus of whose devices Slurm would give an engine fewer than it is divided among (tensor_parallel_size)."""
    found = []
    for gpu in gpus:
        gres = placement(cluster, "measure_engine", gpu, devices)["gres"]
        # Without a count it is one; a site that asks another way (extra) is left alone.
        asked = gres and re.fullmatch(r"gpu(?::[^:,]+?)??(?::(\d+))?", gres)
        if asked and int(asked[1] or 1) < devices:
            found.append(
                f"an engine on {gpu} is divided among {devices} devices (engine.tensor_parallel_size), but {NAME} asks Slurm for "
                f"{gres}; write {{devices}} for their number: gres: gpu:{{gpu}}:{{devices}}"
            )
    return found


def _filled(text, names):
    for name, value in names.items():
        text = text.replace(name, value)
    return text


def _grown(value, factor, attempt, most):
    """None stays None: not asked for. What the site never allows is not asked for either, Slurm would refuse the job."""
    return value and min(value * factor ** (attempt - 1), most or math.inf)


def _text_fault(name, text):
    """What is wrong with a text of a place, or None: another placeholder, or no gres; sbatch would say it too late."""
    if text is None:
        return None
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
    except ValueError as error:
        return (
            f"{text!r}: {error}; valid: plain text, {{gpu}} for the name of the device and {{devices}} for their number"
        )
    valid = {"gpu", "devices"} if name in ("gres", "extra") else {"gpu"}
    if fields - valid:
        number = " and, in gres and extra, {devices}, their number"
        return (
            f"{text!r} has the placeholder {{{min(fields - valid)}}}; valid: {{gpu}}, the name of the device,{number}"
        )
    if name == "gres" and not re.fullmatch(r"[\w.:,{}-]+", text):
        return f"{text!r} is not as sbatch's --gres; valid: such as gpu:1 or gpu:h100:1"
    return None
