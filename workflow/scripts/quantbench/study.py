"""A study: one config file, checked as a whole before anything runs.

`load_study` holds the config to its schema, then to what the schema cannot say: names that refer to something, lengths
that fit the model's context, data sets that exist. Everything wrong is said in one message.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from quantbench import calibrations, sources, study_constraints, study_quality, study_sensitivity, study_serving, sweeps
from quantbench.cluster import load_cluster
from quantbench.contenders import load_contenders
from quantbench.dummy import is_dummy, vocabulary_size
from quantbench.engine_args import setting_faults
from quantbench.errors import UserError
from quantbench.expectations import load_expectations
from quantbench.gpus import load_gpus
from quantbench.keys import key
from quantbench.model_fit import check_scheme_fits
from quantbench.prequantized import check_claims
from quantbench.quantize.checkpoint import tensors as checkpoint_tensors
from quantbench.schemes import load_schemes
from quantbench.shapes import load_shapes
from quantbench.store import Store
from quantbench.validation import check, nearest, with_defaults

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.json"
# Sections with prompt and output lengths.
LENGTHS_OF = ("latency", "throughput", "serving")


@dataclass
class Study:
    """A checked study. `config` has its defaults filled in; models and datasets carry identity, key and what is known."""

    config: dict
    store: Store
    gpus: dict
    schemes: dict
    shapes: dict
    contenders: dict
    cluster: dict
    models: dict = field(default_factory=dict)
    # {(model, scheme): checkpoint that others quantized}, entries as those of models
    prequantized: dict = field(default_factory=dict)
    datasets: dict = field(default_factory=dict)
    # {name: what goes into the identity} of the workloads that are asked for
    workloads: dict = field(default_factory=dict)
    # {name: entry} of lm-eval's tasks that name their data themselves
    tasks: dict = field(default_factory=dict)

    @property
    def name(self):
        return self.config["study"]

    @property
    def unstaged(self):
        """[(kind, name)] of what has to be staged before the identities of all points are known."""
        ready_made = {entry["name"]: entry for entry in self.prequantized.values()}
        entries = [("models", self.models), ("models", ready_made), ("datasets", self.datasets)]
        entries.append(("accuracy, perplexity or fidelity", self.tasks))
        return [(kind, name) for kind, found in entries for name, entry in found.items() if entry["config"] is None]

    def reads_texts(self, dataset):
        """Whether a data set's rows have to be text, or question and answer."""
        named = [*calibrations.datasets(self.config), *study_sensitivity.datasets(self.config)]
        return dataset in named or study_quality.reads_texts(self.config, dataset)


def load_study(config, root=ROOT):
    """The Study that a config (a dict, as Snakemake or YAML read it) describes. Raises UserError listing every fault."""
    if not config:
        raise UserError("no study: pass --configfile config/<study>.yaml")
    check(config, SCHEMA, "the study's config")
    resolved = with_defaults(config, json.loads(SCHEMA.read_text()))
    gpus = load_gpus(root / "config" / "gpus.yaml")
    study = Study(
        config=resolved,
        store=Store(resolved["store"]),
        gpus=gpus,
        schemes=calibrations.with_variants(load_schemes(root / "config" / "schemes"), resolved),
        shapes=load_shapes(root / "config" / "shapes.yaml"),
        contenders=load_contenders(root / "config" / "kernels.yaml"),
        cluster=load_cluster(root / "config" / "cluster.yaml", gpus),
    )
    study_quality.fill_splits(resolved)
    if "expectations" in resolved:
        folder = root / "config" / "expectations"
        resolved["expectations"] = load_expectations(resolved["expectations"], folder, resolved["schemes"])
    calibrations.fill_splits(resolved)
    for stage in LENGTHS_OF:
        if "lengths" in resolved.get(stage, {}):
            resolved[stage]["lengths"] = sweeps.listed(resolved[stage]["lengths"])
    if "kernels" in resolved and resolved["kernels"]["tensor_parallel_size"] is None:
        resolved["kernels"]["tensor_parallel_size"] = resolved["engine"]["tensor_parallel_size"]
    faults = _reference_faults(study) or _source_faults(study) or _length_faults(study)
    if faults:
        raise UserError("\n".join(["the study's config is not valid:", *[f"  - {fault}" for fault in faults]]))
    study.schemes = {name: study.schemes[name] for name in resolved["schemes"]}
    prices = {name: {"price_usd_per_hour": price} for name, price in resolved["prices_usd_per_hour"].items()}
    study.gpus = {name: study.gpus[name] | prices.get(name, {}) for name in resolved["gpus"]}
    asked = resolved.get("kernels", {"shapes": [], "contenders": []})
    study.shapes = {name: study.shapes[name] for name in asked["shapes"]}
    if asked["contenders"] != "all":
        study.contenders = {name: study.contenders[name] for name in asked["contenders"]}
    return study


def _reference_faults(study):
    config, faults = study.config, []
    for section in ("models", "datasets"):
        faults += _twice(section, [entry["name"] for entry in config.get(section, [])])
    for section, valid in (("schemes", study.schemes), ("gpus", study.gpus)):
        faults += _twice(section, config[section])
        faults += [
            f"{section}: unknown {section[:-1]} {n!r}{nearest(n, valid)}" for n in config[section] if n not in valid
        ]
    kernels = config.get("kernels", {"shapes": [], "contenders": []})
    for section, valid in (("shapes", study.shapes), ("contenders", study.contenders)):
        names = [] if kernels[section] == "all" else kernels[section]
        place = f"kernels.{section}"
        faults += _twice(place, names)
        faults += [f"{place}: unknown name {n!r}{nearest(n, valid)}" for n in names if n not in valid]
    taken = {entry["name"] for entry in config["models"]} & set(kernels["shapes"])
    faults += [f"kernels.shapes: {name!r} is the name of a model, too" for name in sorted(taken)]
    if config["baseline"] not in config["schemes"]:
        faults.append(
            f"baseline: {config['baseline']!r} is not among the study's schemes{nearest(config['baseline'], config['schemes'])}"
        )
    faults += [
        f"prices_usd_per_hour: {n!r} is not among the study's gpus{nearest(n, config['gpus'])}"
        for n in config["prices_usd_per_hour"]
        if n not in config["gpus"]
    ]
    names = [entry["name"] for entry in config.get("datasets", [])]
    faults += study_quality.reference_faults(config) + study_quality.dataset_faults(config, names)
    faults += calibrations.reference_faults(config, names, study.schemes)
    faults += study_sensitivity.reference_faults(config, study.schemes)
    faults += _prequantized_faults(study)
    calibrated = [n for n in config["schemes"] if study.schemes.get(n, {}).get("calibrated")]
    if calibrated and "calibration" not in config and not all(map(is_dummy, config["models"])):
        faults.append(f"calibration: section is missing; {', '.join(calibrated)} cannot be quantized without it")
    if config["repeats"]["least"] > config["repeats"]["most"]:
        faults.append(
            f"repeats.least: {config['repeats']['least']} is more than repeats.most, {config['repeats']['most']}"
        )
    for stage, values in _sweeps(config):
        faults += _twice(stage, values)
    for stage in ("latency", "throughput"):
        faults += sweeps.faults(stage, config[stage]) if stage in config else []
    return faults + study_serving.reference_faults(config) + study_constraints.reference_faults(config)


def _prequantized_faults(study):
    """Which checkpoint stands for which scheme: one per model and scheme with toolkit prequantized, and no other."""
    faults, asked = [], study.config["schemes"]
    wanted = [name for name in asked if study.schemes.get(name, {}).get("toolkit") == "prequantized"]
    for i, model in enumerate(study.config["models"]):
        named = [entry["scheme"] for entry in model.get("prequantized", [])]
        place = f"models[{i}].prequantized"
        if is_dummy(model):
            faults += [f"{place}: a model with weights: dummy takes no checkpoint, leave it out"] if named else []
            continue
        faults += _twice(place, named)
        for name in named:
            if name not in asked:
                faults.append(f"{place}: {name!r} is not among the study's schemes{nearest(name, asked)}")
            elif name not in wanted:
                faults.append(
                    f"{place}: {name!r} is made here; only schemes with toolkit prequantized take a checkpoint"
                )
        for name in wanted:
            if name not in named:
                line = f"{{scheme: {name}, source: hf://org/name@revision}}"
                faults.append(f"{place}: scheme {name!r} needs the checkpoint that stands for it: - {line}")
    return faults


def _sweeps(config):
    for stage, names in (
        ("kernels", ["tokens", "products"]),
        ("latency", ["batch_sizes"]),
        ("throughput", ["batch_sizes", "workloads"]),
        ("serving", ["request_rates", "concurrencies", "burstiness", "lengths", "workloads"]),
    ):
        for name in names:
            yield f"{stage}.{name}", config.get(stage, {}).get(name, [])
    for stage in ("accuracy", "perplexity", "fidelity"):
        yield stage, config.get(stage, [])


def _twice(place, values):
    return [f"{place}: {value!r} stands twice" for i, value in enumerate(values) if value in values[:i]]


def _source_faults(study):
    """Resolve every source to an identity and a key; collect what cannot be."""
    faults, pins = [], sources.read_pins()
    digest = sources.DigestCache(study.store.root / "digests.json")
    for i, entry in enumerate(study.config["models"]):
        try:
            source = sources.parse(entry["source"], "model")
            identity = sources.model_identity(source, pins, digest, entry["trust_remote_code"], is_dummy(entry))
            config = (
                _staged_json(study, "models", identity, "config.json") if source.path is None else _local_config(source)
            )
            if is_dummy(entry) and config:
                vocabulary_size(config)
            study.models[entry["name"]] = {
                **entry,
                "identity": identity,
                "key": identity and key(identity),
                "config": config,
                "folder": source.path or (identity and study.store.folder("models", key(identity))),
            }
        except UserError as error:
            faults.append(f"models[{i}].source: {error}")
            continue
        for j, ready_made in enumerate(entry.get("prequantized", [])):
            try:
                study.prequantized[entry["name"], ready_made["scheme"]] = _ready_made(
                    study, entry, ready_made, pins, digest
                )
            except UserError as error:
                faults.append(f"models[{i}].prequantized[{j}]: {ready_made['source']} {error}")
    for i, entry in enumerate(study.config.get("datasets", [])):
        try:
            source = sources.parse(entry["source"], "data")
            identity = sources.dataset_identity(source, entry.get("subset"), pins, digest)
            splits = (
                _staged_json(study, "datasets", identity, "quantbench.json")
                if source.path is None
                else _local_splits(source)
            )
            study.datasets[entry["name"]] = {
                **entry,
                "identity": identity,
                "key": identity and key(identity),
                "config": splits,
            }
        except UserError as error:
            faults.append(f"datasets[{i}].source: {error}")
    if faults:
        return faults
    study.workloads = study_serving.workload_identities(study.config, digest)
    study.tasks = study_quality.task_entries(study, pins)
    return _split_faults(study) + study_quality.task_faults(study)


def _ready_made(study, model, entry, pins, digest):
    """An entry of study.prequantized; raises UserError where its files, once they are here, are not what they claim."""
    source = sources.parse(entry["source"], "model")
    identity = sources.model_identity(source, pins, digest, model["trust_remote_code"])
    # The sign is in no name of a model, so it is no other model's.
    found = {"name": f"{model['name']}@{entry['scheme']}", "source": entry["source"], "identity": identity}
    found |= {"trust_remote_code": model["trust_remote_code"], "key": identity and key(identity), "config": None}
    if source.path is not None:
        folder, config = source.path, _local_config(source)
    else:
        folder, config = None, _staged_json(study, "models", identity, "config.json")
        folder = config and study.store.folder("models", key(identity))
    base = study.models[model["name"]]["config"]
    if config and base:
        check_claims(study.schemes[entry["scheme"]], config, checkpoint_tensors(folder), base)
    return {**found, "config": config}


def _local_config(source):
    try:
        return json.loads((source.path / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{source.path / 'config.json'} is not valid JSON: {error}") from None


def _local_splits(source):
    splits = {}
    for split, path in sources.dataset_files(source.path).items():
        with open(path) as file:
            splits[split] = sum(1 for line in file if line.strip())
    return {"splits": splits}


def _staged_json(study, kind, identity, name):
    if identity is None or not study.store.has_folder(kind, key(identity)):
        return None
    return json.loads((study.store.folder(kind, key(identity)) / name).read_text())


def _split_faults(study):
    """Rows that are asked for, and are not in the data set."""
    asked = study_quality.split_rows(study.config) + calibrations.rows_asked(study.config)
    asked += study_sensitivity.split_rows(study.config)
    faults = []
    for place, dataset, split, rows in asked:
        known = study.datasets[dataset]["config"]
        if known is None:
            continue
        if split not in known["splits"]:
            faults.append(f"{place}: data set {dataset!r} has no split {split!r}{nearest(split, known['splits'])}")
        elif rows is not None and rows > known["splits"][split]:
            faults.append(
                f"{place}: {rows} asked, but {dataset!r} has {known['splits'][split]} rows in split {split!r}"
            )
    return faults


def _length_faults(study):
    """Prompts and outputs beyond a model's context, batches beyond max_num_seqs, groups that do not divide a layer."""
    faults, engine = [], study.config["engine"]
    # Prompts beyond them would wait for others: throughput's do by their nature, a batch's latency would be of two.
    for batch_size in sorted({point["batch_size"] for point in sweeps.points(study.config.get("latency"))}):
        if batch_size > engine["max_num_seqs"]:
            faults.append(
                f"latency.batch_sizes: {batch_size} is more than engine.max_num_seqs, {engine['max_num_seqs']}"
            )
    for name, model in study.models.items():
        if model["config"] is None:
            continue
        own = model["config"].get("max_position_embeddings")
        context = engine["max_model_len"] or own
        if own and engine["max_model_len"] and engine["max_model_len"] > own:
            faults.append(
                f"engine.max_model_len: {engine['max_model_len']} is more than the context of model {name!r}, {own}"
            )
        for stage in LENGTHS_OF:
            for i, length in enumerate(study.config.get(stage, {}).get("lengths", [])):
                total = length["input_tokens"] + length["output_tokens"]
                if context and total > context:
                    faults.append(
                        f"{stage}.lengths[{i}]: input_tokens + output_tokens is {total}, but model {name!r} has a context of {context}"
                    )
        schemes = {scheme: study.schemes[scheme] for scheme in study.config["schemes"]}
        faults += setting_faults(engine, schemes, name, model["config"], context)
        if not is_dummy(model):
            faults += study_quality.model_faults(study, name, model, context)
            faults += calibrations.model_faults(study.config, name, model)
            faults += study_sensitivity.model_faults(study.config, study.schemes, name, model["config"])
        spared = [scheme for scheme, recipe in schemes.items() if "spare" in recipe] if is_dummy(model) else []
        faults += [
            f"schemes: {scheme} spares the layers that suffer most, which dummy weights of model {name!r} do not tell"
            for scheme in spared
        ]
        faults += study_serving.model_faults(study.config, name, context)
        for scheme in study.config["schemes"]:
            try:
                check_scheme_fits(study.schemes[scheme], model["config"])
            except UserError as error:
                faults.append(f"schemes: {scheme} does not fit model {name!r}: {error}")
    return faults
