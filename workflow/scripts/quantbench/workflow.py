"""What the rules ask: which jobs there are, what they wait for, and where their pointers lie.

A job exists only while the store lacks something that it makes. Its output is a small pointer below results/<study>/,
which is removed as soon as the store lacks something again: the store alone decides what runs.
"""

import functools
import shlex
from pathlib import Path

from quantbench import cluster, jobs, sources
from quantbench.dummy import is_dummy
from quantbench.environments import check_brought, environment_folder, interpreter
from quantbench.estimate import estimate_study
from quantbench.keys import canonical_json, key
from quantbench.manifest import build_manifest, quantize_environment, requirements
from quantbench.points import JOB_OF_STAGE, expand, is_measured, job_of, lacking
from quantbench.study import load_study

# Pointer of each rule's job, below results/<study>/; its wildcards name the job.
POINTERS = {
    "stage_model": "models/{model}.json",
    "stage_dataset": "datasets/{dataset}.json",
    "stage_task": "tasks/{task}.json",
    "quantize_model": "checkpoints/{model}/{scheme}.json",
    "probe_gpu": "gpus/{gpu}.json",
    "ask_support": "support/{gpu}.json",
    "measure_gemm": "kernels/{gpu}.json",
    "measure_engine": "engine/{gpu}/{model}/{scheme}.json",
    "measure_serving": "serving/{gpu}/{model}/{scheme}.json",
    "measure_sensitivity": "sensitivity/{model}/{scheme}.json",
}
POINT_JOBS = tuple(dict.fromkeys(JOB_OF_STAGE.values()))
# Asking the engine's chooser measures nothing: tables and report need it, the milestone `measurements` does not.
MEASURING = tuple(name for name in POINT_JOBS if name != "ask_support")


class Workflow:
    """A study seen by Snakemake. Raises UserError for a config that is not valid, before any job."""

    def __init__(self, config):
        self.study = load_study(config)
        for name in self.environments:
            if name in self.study.cluster["environments"]:
                check_brought(name, self.study.cluster["environments"][name])
        self.store = self.study.store
        self.results = Path("results") / self.study.name
        self.report = Path("reports") / f"{self.study.name}.html"
        # Until a hub source is staged its commit and its config are unknown, and so is every key below it.
        self.planned = not self.study.unstaged
        self.jobs = {name: {} for name in POINTERS} | self._staging_jobs()
        self.manifest = None
        if self.planned:
            self.manifest = build_manifest(self.study)
            self.jobs |= jobs.build_jobs(self.manifest, self.store)
            self.jobs["quantize_model"] = jobs.quantize_jobs(self.manifest, self.store)
        self._missing, self._lacking = {}, None

    # --- environments -------------------------------------------------------------------------------------------------

    @property
    def environments(self):
        """Names of the environments the study needs."""
        names = {entry["environment"] for entry in self.study.gpus.values()}
        quantizes = any(scheme["toolkit"] == "llmcompressor" for scheme in self.study.schemes.values())
        if quantizes and not all(map(is_dummy, self.study.models.values())):
            names.add(self.quantize_environment)
        return sorted(names)

    @property
    def hub_environment(self):
        """The environment that downloads, or None where every source is local."""
        entries = [*self.study.models.values(), *self.study.prequantized.values(), *self.study.datasets.values()]
        if not self.study.tasks and not any(entry["source"].startswith("hf:") for entry in entries):
            return None
        return next(iter(self.study.gpus.values()))["environment"]

    @property
    def quantize_environment(self):
        return quantize_environment(self.study)

    def engine_environment(self, gpu):
        return self.study.gpus[gpu]["environment"]

    def environment(self, name):
        """Folder of an environment; its name carries a digest of what it pins."""
        return environment_folder([requirements(name)])

    def ready(self, name):
        """Stamps that say an environment is built; none of one that the site brings."""
        return [] if name in self.study.cluster["environments"] else [f"{self.environment(name)}/ready"]

    def interpreter(self, name, scripts):
        """The words of a shell command that end in an environment's Python."""
        brought = self.study.cluster["environments"].get(name)
        return interpreter(name, requirements(name), brought, [self.store.root], self.study.cluster["scratch"], scripts)

    @property
    def devices(self):
        """How many devices one engine takes."""
        return self.study.config["engine"]["tensor_parallel_size"]

    # --- the cluster ------------------------------------------------------------------------------------------------------

    def resources(self, name, attempt, estimated, **wildcards):
        """{Snakemake resource: value or None} that a job asks a cluster for; `estimated`: time and memory by estimate, too."""
        estimate = self.estimates.get((name, self._target(name, wildcards))) if estimated else None
        devices = self.devices if name in ("measure_engine", "measure_serving") else 1
        return cluster.resources(self.study.cluster, name, wildcards.get("gpu"), estimate, attempt, devices)

    @functools.cached_property
    def estimates(self):
        """{(rule, target): estimate.Estimate} of the jobs that have work."""
        return estimate_study(self.manifest, self.store) if self.planned else {}

    def misfits(self, attempts):
        """Sentences on the jobs that do not fit the site's limits."""
        gpus = [gpu for gpu, entry in self.study.gpus.items() if not entry["environment"].endswith("-cpu")]
        return [
            *cluster.too_few_devices(self.study.cluster, gpus, self.devices),
            *cluster.misfits(self.study.cluster, self.estimates, attempts),
        ]

    def node_variables(self):
        """Environment variables of every job on a node (scratch.py), as words of a shell command."""
        settings = self.study.cluster
        variables = {"QUANTBENCH_SCRATCH": settings["scratch"] or "", "QUANTBENCH_CACHE": self.results / "cache"}
        variables |= {"QUANTBENCH_COPY_CHECKPOINTS": "1"} if settings["copy_checkpoints"] else {}
        return " ".join(f"{name}={shlex.quote(str(value))}" for name, value in variables.items())

    # --- jobs and their pointers ------------------------------------------------------------------------------------------

    def pattern(self, name):
        """Output of a rule, with its wildcards."""
        return f"results/{{study}}/{POINTERS[name]}"

    def pointer(self, name, target):
        return str(self.results / POINTERS[name].format(**self._wildcards(name, target)))

    def pointers(self, *names):
        """Pointers of all jobs of these rules (of every measuring rule and quantize_model, if none is named) that have work."""
        names = names or ("quantize_model", *POINT_JOBS)
        self._look_at_all()
        return [
            self.pointer(name, target) for name in names for target in self.jobs[name] if self.missing(name, target)
        ]

    def missing(self, name, target):
        """Keys that the store lacks of what a job makes."""
        if (name, target) not in self._missing:
            job = self.jobs[name][target]
            if name in POINT_JOBS:
                found = [key for key, point in self._points[name, target].items() if self._lacks(point)]
            else:
                kinds = {"stage_model": "models", "stage_dataset": "datasets", "stage_task": "tasks"}
                kind = kinds.get(name, "checkpoints")
                identity = job["identity"]
                have = identity is not None and self.store.has_folder(kind, key(identity))
                found = [] if have else [identity and key(identity)]
                points = [key(point["identity"]) for point in job.get("layers", [])]
                found += [point for point in points if not self.store.has_point(point)]
            self._missing[name, target] = found
        return self._missing[name, target]

    def job_text(self, name, **wildcards):
        return jobs.text(self.jobs[name][self._target(name, wildcards)])

    def forget_pointers(self):
        """Remove the pointers of jobs that have work, so that each of them runs.

        Snakemake alone would not see it: it never looks at the params of a job below one that has to run, nor at those
        of a pointer that it has no record of.
        """
        self._look_at_all()
        for name, found in self.jobs.items():
            for target in found:
                if self.missing(name, target):
                    Path(self.pointer(name, target)).unlink(missing_ok=True)

    def needs(self, name, **wildcards):
        """Pointers of what a job uses and the store lacks."""
        target = self._target(name, wildcards)
        wanted = []
        if name in ("measure_engine", "measure_serving"):
            gpu, model, scheme = target
            scheme = scheme.partition("+")[0]
            ready_made = self.study.prequantized.get((model, scheme))
            wanted = [("probe_gpu", (gpu, None, None)), ("stage_model", ready_made["name"] if ready_made else model)]
            wanted += [("quantize_model", (model, scheme))] if (model, scheme) in self.jobs["quantize_model"] else []
            if name == "measure_engine":
                wanted += [(rule, found) for rule in ("stage_dataset", "stage_task") for found in self.jobs[rule]]
                wanted += self._reference_jobs(target)
            # Whether a scheme has to be emulated its own start says.
            own = (*target[:2], scheme)
            # Where the rules refuse the scheme there is no such start: it is emulated without asking.
            native = own != target and own in self.jobs[name] and "emulate" in self.jobs[name][target]
            wanted += [(name, own)] if native else []
            # A variant that the engine refused needs no server: its serving points get the engine's reason.
            wanted += [("measure_engine", target)] if name == "measure_serving" else []
        elif name == "quantize_model":
            wanted = [("stage_model", target[0])] + [("stage_dataset", name) for name in self.jobs["stage_dataset"]]
            if parent := self.study.schemes[target[1]].get("spare", {}).get("worst_of"):
                wanted.append(("measure_sensitivity", (None, target[0], parent)))
        elif name == "measure_sensitivity":
            wanted = [("stage_model", target[1]), ("quantize_model", target[1:])]
            wanted += [("stage_dataset", name) for name in self.jobs["stage_dataset"]]
        return [self.pointer(rule, job) for rule, job in wanted if self.missing(rule, job)]

    def staged(self):
        """Pointers of the models, data sets and tasks' data that are not in the store."""
        return self.pointers("stage_model", "stage_dataset", "stage_task")

    def manifest_digest(self):
        return self.manifest and key(self.manifest)

    def config_text(self):
        """What decides the points: the config without its title, which only the report shows."""
        return canonical_json({name: value for name, value in self.study.config.items() if name != "title"})

    # --- inside -----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _points(self):
        """{(rule, target): {key: point}}"""
        found = {}
        for point in self.manifest["points"]:
            found.setdefault(job_of(point), {})[point["key"]] = point
        return found

    def _look_at_all(self):
        """Ask the store for every point of the study at once; a job's own Snakemake asks for a few of them."""
        if self._lacking is None and self.planned:
            self._lacking = lacking(self.manifest["points"], self.store)

    def _lacks(self, point):
        return not is_measured(point, self.store) if self._lacking is None else point["key"] in self._lacking

    def _staging_jobs(self):
        def job(kind, entry, tiny):
            source = sources.parse(entry["source"], tiny)
            return {
                "kind": kind,
                "name": entry["name"],
                "source": entry["source"],
                "path": source.path and str(source.path),
                "hub": source.name,
                "revision": source.revision,
                "subset": entry.get("subset"),
                "trust_remote_code": entry.get("trust_remote_code", False),
                "weights": entry.get("weights"),
                "identity": entry["identity"],
            }

        return {
            "stage_model": {
                entry["name"]: job("model", entry, "model")
                for entry in [*self.study.models.values(), *self.study.prequantized.values()]
            },
            "stage_dataset": {
                name: job("dataset", entry, "data") | {"texts": self.study.reads_texts(name)}
                for name, entry in self.study.datasets.items()
            },
            "stage_task": {
                name: {"kind": "task", "name": name, **{n: entry[n] for n in ("task", "lm_eval", "identity")}}
                for name, entry in self.study.tasks.items()
            },
        }

    def _reference_jobs(self, target):
        """The job of the baseline, where a job's missing points are to be compared with what that has yet to measure."""
        job, missing = self.jobs["measure_engine"][target], set(self.missing("measure_engine", target))
        asked = {p["params"]["reference"] for p in expand(job) if p["stage"] == "fidelity" and p["key"] in missing}
        baseline = (target[0], target[1], self.study.config["baseline"])
        if not asked or baseline not in self.jobs["measure_engine"]:
            return []
        return [("measure_engine", baseline)] if asked & set(self.missing("measure_engine", baseline)) else []

    def _wildcards(self, name, target):
        names = {"stage_model": ["model"], "stage_dataset": ["dataset"], "stage_task": ["task"]}
        names["quantize_model"] = ["model", "scheme"]
        values = (target,) if isinstance(target, str) else target
        return dict(zip(names.get(name, ["gpu", "model", "scheme"]), values, strict=True))

    def _target(self, name, wildcards):
        if name.startswith("stage_"):
            return wildcards[name.removeprefix("stage_")]
        if name == "quantize_model":
            return wildcards["model"], wildcards["scheme"]
        return wildcards.get("gpu"), wildcards.get("model"), wildcards.get("scheme")
