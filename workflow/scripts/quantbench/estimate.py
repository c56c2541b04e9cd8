"""What each job will take: seconds of its device, and host memory. From what the store has measured, else by rule (guess.py).

    seconds = process + engine start + sum over its missing points of (rule x correction)

A correction is the median of measured / rule over the points of that gpu and stage, of the same checkpoint where the store
has any: so what was measured at batch 8 says something about batch 64, and one model about another. Without any, the rule
alone. Expected values without a margin: who asks a cluster for time adds one. Pure, but for `read_evidence`.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median

from quantbench import guess
from quantbench.points import job_of, lacking_layers
from quantbench.points import lacking as lacking_points

# Stages whose process starts an engine, or a server.
STARTING = ("measure_engine", "measure_serving")
# Measured points read per gpu and stage: a median needs no more, and a file is opened for each.
MOST_READ = 30
MEASURED, GUESS = "measured", "guess"


@dataclass(frozen=True)
class Estimate:
    """What one job will take.

    seconds       from the start of its process to its end
    memory_bytes  of the host
    basis         "measured": everything in it has been measured before, on that gpu; else "guess"
    guessed       what has not: names of stages, and "engine start"
    points        points it will measure; 1 for a checkpoint
    start_s       part of `seconds` until the first point: the process and its engine
    """

    seconds: float
    memory_bytes: float
    basis: str
    guessed: tuple = ()
    points: int = 0
    start_s: float = 0.0


@dataclass
class Evidence:
    """What the store has measured.

    points       records with status ok and measured_s, of the gpus and stages that are asked about
    runs         run records
    checkpoints  quantbench.json of quantized checkpoints
    configs      {model key: config.json} of models that these refer to and the manifest lacks
    variants     {checkpoint key: {"model" (its key), "recipe", "bytes"}} likewise, and of the manifest's that are made
    """

    points: list = field(default_factory=list)
    runs: list = field(default_factory=list)
    checkpoints: list = field(default_factory=list)
    configs: dict = field(default_factory=dict)
    variants: dict = field(default_factory=dict)


def estimate_study(manifest, store, lacking=None, elsewhere=True):
    """{(rule, target): Estimate} of every job that has work, as the store is now; targets as in jobs.build_jobs.

    lacking    keys of points and checkpoints that the store lacks, where they are known already
    elsewhere  whether to read what other studies measured, where this one has measured nothing alike
    """
    if lacking is None:
        lacking = store_lacks(manifest, store)
    return estimate_jobs(manifest, lacking, read_evidence(manifest, store, lacking, elsewhere)) if lacking else {}


def store_lacks(manifest, store):
    """Keys of the study's points and quantized checkpoints that the store lacks."""
    made = (entry for entry in manifest["checkpoints"] if entry["quantized"])
    found = lacking_points(manifest["points"], store) | {point["key"] for point in lacking_layers(manifest, store)}
    return found | {entry["key"] for entry in made if not store.has_folder("checkpoints", entry["key"])}


def estimate_jobs(manifest, lacking, evidence):
    """{(rule, target): Estimate} of the jobs that make what is in `lacking`."""
    found = {}
    judge = _Judge(manifest, evidence)
    for entry in manifest["checkpoints"]:
        compared = [p for p in manifest.get("layers", []) if p["identity"]["checkpoint"] == entry["key"]]
        if entry["quantized"] and lacking & {entry["key"], *(point["key"] for point in compared)}:
            new = entry["key"] in lacking
            found["quantize_model", (entry["model"], entry["scheme"])] = judge.quantizing(entry, new, len(compared))
    work = defaultdict(dict)
    for point in manifest["points"]:
        if point["key"] in lacking:
            work[job_of(point)][point["key"]] = point
    for (name, target), unique in work.items():
        found[name, target] = judge.measuring(name, target, list(unique.values()))
    return found


def run_seconds(run):
    """Wall seconds of a run, to the second; None for one that was killed."""
    if not run.get("ended_at"):
        return None
    started, ended = (datetime.fromisoformat(run[name]) for name in ("started_at", "ended_at"))
    return (ended - started).total_seconds()


def _like(identity):
    """What measured points are alike in; an emulated start is no measure of a native one."""
    return identity["gpu"], identity["stage"], "emulated" in identity


class _Judge:
    """Rules, and their corrections by evidence."""

    def __init__(self, manifest, evidence):
        self.manifest, self.evidence = manifest, evidence
        self.entries = {(entry["model"], entry["scheme"]): entry for entry in manifest["checkpoints"]}
        self.variants = {e["key"]: self._described(e) for e in manifest["checkpoints"]} | evidence.variants
        self.configs = evidence.configs | {model["key"]: model["config"] for model in manifest["models"].values()}
        probed = [record for record in evidence.points if record["identity"]["stage"] == "probe" and record["rows"]]
        probes = {record["identity"]["gpu"]: record["rows"][0] for record in probed}
        self.devices = {gpu: guess.device_of(entry, probes.get(gpu)) for gpu, entry in manifest["gpus"].items()}
        # Where quantizing runs: on a GPU, where the study has one.
        self.devices[None] = next(
            (device for device in self.devices.values() if device.environment == "engine-cuda"),
            next(iter(self.devices.values())),
        )
        self.sizes = {}
        self.corrections = self._corrections()
        self.starts, self.rests = self._starts(), self._rests()

    def measuring(self, name, target, points):
        """The Estimate of a job on a device."""
        gpu, model, label = target
        # A second start of a variant is as long as the first.
        scheme = label and label.partition("+")[0]
        device, guessed = self.devices[gpu], set()
        process, known = self._rest(name, gpu)
        entry = self.entries.get((model, scheme))
        size = self.size(entry["key"]) if entry else None
        if not known:
            guessed.add("process")
        if name in STARTING:
            started, known = self._start(name, gpu, model, scheme, size)
            process += started
            if not known:
                guessed.add("engine start")
        seconds = 0.0
        for point in points:
            took, known = self._point(point["identity"])
            seconds += took
            if not known:
                guessed.add(point["stage"])
        if name == "measure_sensitivity":
            memory = guess.sensitivity_memory_bytes(size, points, self._vocabulary(model))
            process += size.parameters * 2 / guess.LOAD_BYTES_PER_S
            # The 16-bit model reads the documents first.
            process += max(self._point(point["identity"])[0] for point in points)
        elif name in STARTING:
            memory = guess.engine_memory_bytes(device, size, points[0]["identity"]["engine_args"])
        else:
            params = [point["identity"]["params"] for point in points]
            memory = guess.device_memory_bytes(device, max(p.get("n", 0) * p.get("k", 0) for p in params))
        same = [
            run
            for run in self.evidence.runs
            if (run["stage"], run["gpu"], run["model"], run["scheme"]) == (name, gpu, model, scheme)
        ]
        peaks = [run["peak_memory_bytes"] for run in same if run.get("peak_memory_bytes")]
        basis = GUESS if guessed else MEASURED
        memory = max(peaks, default=memory)
        return Estimate(process + seconds, memory, basis, tuple(sorted(guessed)), len(points), process)

    def quantizing(self, entry, new=True, compared=0):
        """The Estimate of a checkpoint; of one that is there (`new` False), of comparing its layers, on so many texts."""
        cuda = not all(gpu["environment"].endswith("-cpu") for gpu in self.manifest["gpus"].values())
        calibration = entry["identity"]["calibration"]
        size = self._whole(entry["identity"]["model"])
        rule_s = guess.quantize_s(size, calibration, cuda)
        ratios, peaks = [], []
        for record in self.evidence.checkpoints:
            other, of = record["identity"], record["identity"]["model"]
            alike = bool(other["calibration"]) == bool(calibration) and record["device"].startswith("cuda") == cuda
            if alike and of in self.configs:
                ratios.append(record["quantize_s"] / guess.quantize_s(self._whole(of), other["calibration"], cuda))
                if of == entry["identity"]["model"]:
                    peaks.append(record["peak_memory_bytes"])
        # A comparison is a pass over the weights, as rounding them to the nearest is.
        rule_s = (rule_s if new else 0.0) + compared * guess.quantize_s(size, None, cuda)
        seconds = rule_s * median(ratios) if ratios else rule_s
        memory = max(peaks, default=guess.quantize_memory_bytes(size))
        start = guess.PROCESS_S
        guessed = () if ratios else ("quantize_model",)
        return Estimate(start + seconds, memory, GUESS if guessed else MEASURED, guessed, 1, start)

    def size(self, checkpoint):
        """guess.Size of a checkpoint key; None where nothing is known of it any more."""
        if checkpoint not in self.sizes:
            variant = self.variants.get(checkpoint)
            config = variant and self.configs.get(variant["model"])
            self.sizes[checkpoint] = config and guess.size_of(config, variant["recipe"], variant.get("bytes"))
        return self.sizes[checkpoint]

    def _vocabulary(self, model):
        config = self.manifest["models"][model]["config"]
        return config.get("text_config", config)["vocab_size"]

    def _whole(self, model_key):
        return guess.size_of(self.configs[model_key], {"format": None, "ignore": []})

    def _described(self, entry):
        model = self.manifest["models"][entry["model"]]["key"]
        return {"model": model, "recipe": self.manifest["schemes"][entry["scheme"]], "bytes": None}

    def _rule(self, identity):
        """Seconds of a point by rule; None where its size is not known."""
        device, size = self.devices.get(identity["gpu"]), None
        if "checkpoint" in identity:
            size = self.size(identity["checkpoint"])
            if size is None:
                return None
        return device and guess.point_s(identity, device, size)

    def _corrections(self):
        """{(*_like, checkpoint or None): [measured / rule]}"""
        found = defaultdict(list)
        for record in self.evidence.points:
            identity = record["identity"]
            rule_s = self._rule(identity)
            if rule_s:
                ratio = record["measured_s"] / rule_s
                for checkpoint in {identity.get("checkpoint"), None}:
                    found[*_like(identity), checkpoint].append(ratio)
        return {place: median(ratios) for place, ratios in found.items()}

    def _point(self, identity):
        """(seconds, whether its like has been measured)"""
        rule_s, place = self._rule(identity), _like(identity)
        for checkpoint in (identity.get("checkpoint"), None):
            if (*place, checkpoint) in self.corrections:
                return rule_s * self.corrections[(*place, checkpoint)], True
        # A load is measured by the start of the engine itself.
        return rule_s, identity["stage"] == "load"

    def _starts(self):
        """{(rule, gpu): [(model, scheme, seconds)]} of the runs that started an engine."""
        found = defaultdict(list)
        for run in self.evidence.runs:
            if run.get("engine_start_s"):
                found[run["stage"], run["gpu"]].append((run["model"], run["scheme"], run["engine_start_s"]))
        return found

    def _start(self, name, gpu, model, scheme, size):
        eager = self.manifest["study"]["engine"]["enforce_eager"]
        rule_s, past = guess.engine_start_s(self.devices[gpu], size, eager), self.starts[name, gpu]
        own = [seconds for *variant, seconds in past if variant == [model, scheme]]
        if own:
            return median(own), True
        ratios = []
        for *variant, seconds in past:
            entry = self.entries.get(tuple(variant))
            if entry:
                ratios.append(seconds / guess.engine_start_s(self.devices[gpu], self.size(entry["key"]), eager))
        return rule_s * (median(ratios) if ratios else 1.0), bool(ratios)

    def _rests(self):
        """{(rule, gpu): [seconds of a run that were neither start nor points]}"""
        found = defaultdict(list)
        for run in self.evidence.runs:
            wall_s = run_seconds(run)
            if wall_s is not None and run["measured_s"]:
                rest_s = wall_s - (run.get("engine_start_s") or 0.0) - run["measured_s"]
                found[run["stage"], run["gpu"]].append(max(rest_s, 0.0))
        return {place: median(values) for place, values in found.items()}

    def _rest(self, name, gpu):
        return self.rests.get((name, gpu), guess.PROCESS_S), (name, gpu) in self.rests


# --- reading the store ----------------------------------------------------------------------------------------------


def read_evidence(manifest, store, lacking, elsewhere=True):
    """The Evidence on what is lacking: the study's own points; `elsewhere`, the rest of the store for what they leave open."""
    wanted = {(point["gpu"], point["stage"]) for point in manifest["points"] if point["key"] in lacking}
    wanted |= {(gpu, "probe") for gpu in manifest["gpus"]}
    evidence = Evidence(runs=list(store.read_runs().values()))
    evidence.points = [record for record in _own_points(manifest, store, lacking, wanted) if _usable(record)]
    seen = {(record["identity"]["gpu"], record["identity"]["stage"]) for record in evidence.points}
    unseen = {place for place in wanted - seen if place[1] not in ("load", "support")}
    if elsewhere and any(place[1] != "probe" for place in unseen):
        others = (record for record in store.read_points().values() if _usable(record))
        evidence.points += [r for r in others if (r["identity"]["gpu"], r["identity"]["stage"]) in unseen]
    known = {model["key"] for model in manifest["models"].values()}
    schemes = {entry["key"]: manifest["schemes"][entry["scheme"]] for entry in manifest["checkpoints"]}
    for key, record in _named_folders(store, "checkpoints"):
        if record.get("quantize_s"):
            evidence.checkpoints.append(record)
        recipe = schemes.get(key) or record["identity"]["recipe"]
        evidence.variants[key] = {"model": record["identity"]["model"], "recipe": recipe, "bytes": record.get("bytes")}
    for key, _ in _named_folders(store, "models"):
        path = store.folder("models", key)
        if key not in known and (path / "config.json").exists():
            evidence.configs[key] = json.loads((path / "config.json").read_text())
            # A model is its own 16-bit variant.
            evidence.variants[key] = {"model": key, "recipe": {"format": None, "ignore": []}, "bytes": None}
    return evidence


def _usable(record):
    return record is not None and record["status"] == "ok" and record.get("measured_s") is not None


def _own_points(manifest, store, lacking, wanted):
    """Records of the study's measured points, those of the checkpoints in question first, at most MOST_READ of a kind."""
    keys = defaultdict(dict)
    asked = {p["identity"].get("checkpoint") for p in manifest["points"] if p["key"] in lacking}
    for point in manifest["points"]:
        place = (point["gpu"], point["stage"])
        if place in wanted and point["key"] not in lacking:
            keys[place][point["key"]] = point["identity"].get("checkpoint") not in asked
    for found in keys.values():
        for key in sorted(found, key=found.get)[:MOST_READ]:
            yield store.read_point(key)


def _named_folders(store, kind):
    """(key, quantbench.json) of each folder; a partial one has a name that begins with a dot."""
    for path in sorted((store.root / kind).glob("[0-9a-f]*/quantbench.json")):
        yield path.parent.name, json.loads(path.read_text())
