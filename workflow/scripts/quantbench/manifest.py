"""From a study to its manifest: every artefact and every point with its identity and key, before anything runs."""

from quantbench import calibrations, dummy, emulated, engine_args, sensitivity, sweeps, workloads
from quantbench.contenders import contender_identity, device_refusal, forced_layer
from quantbench.environments import engine_versions, pins, scoring_versions, toolkit_versions
from quantbench.errors import UserError
from quantbench.keys import key
from quantbench.layers import layer_points
from quantbench.points import PROTOCOL
from quantbench.roofline import layer_shapes
from quantbench.schemes import recipe_identity
from quantbench.serving_points import search_parameters, serving_parameters
from quantbench.shapes import shapes_of
from quantbench.study import ROOT
from quantbench.support import support
from quantbench.tasks import definition, is_file, slug

# What a study may ask to be measured of a variant.
MEASURED = ("latency", "throughput", "accuracy", "perplexity", "fidelity", "serving")


def build_manifest(study):
    """The study's manifest (see config/README.md). Raises UserError when something has to be staged first."""
    if study.unstaged:
        raise UserError(unstaged_message(study))
    checkpoints, points, skips = [], [], []
    for model in study.models:
        for scheme in study.schemes:
            checkpoints.append(checkpoint(study, model, scheme))
    for gpu, entry in study.gpus.items():
        device = {"artefact": "point", "gpu": gpu, "epoch": entry["epoch"]}
        versions = engine_versions(*environment(study, entry["environment"]))
        no_engine = engine_refuses(entry)
        if no_engine:
            skips.append({"stage": "probe", "gpu": gpu, "model": None, "scheme": None, "reason": no_engine})
        else:
            points.append(_point("probe", gpu, None, None, device, versions, {}))
        refused = {scheme: reason for scheme in study.schemes if (reason := device_refuses(study, scheme, entry))}
        points += [_support_point(study, gpu, scheme, device, versions) for scheme in study.schemes]
        for variant in checkpoints:
            label = {"gpu": gpu, "model": variant["model"], "scheme": variant["scheme"]}
            besides = _emulated_points(study, gpu, variant, device, versions)
            if study.config["baseline"] in refused:
                besides = [point for point in besides if point["stage"] != "fidelity"]
            if variant["scheme"] in refused:
                reason = refused[variant["scheme"]]
                skips += [{"stage": stage, **label, "reason": reason} for stage in _stages(study)]
                points += besides
                continue
            found = _variant_points(study, gpu, variant, device, versions)
            if study.config["baseline"] in refused and study.config.get("fidelity") and not dummy.is_dummy(variant):
                found = [point for point in found if point["stage"] != "fidelity"]
                reason = f"the baseline cannot run here: {refused[study.config['baseline']]}"
                skips.append({"stage": "fidelity", **label, "reason": reason})
            again = study.config["noise_floor"] and variant["scheme"] == study.config["baseline"]
            found += besides
            found += _variant_points(study, gpu, variant, device, versions, start=2) if again else []
            if dummy.is_dummy(variant):
                found, left = dummy.without_quality(found, _stages(study), label)
                skips += left
            points += found
        kernel_points, kernel_skips = _gemm_points(study, gpu, refused, no_engine, device, versions)
        points += kernel_points
        skips += kernel_skips
    for model, found in study.models.items():
        for _, entry in [] if dummy.is_dummy(found) else sensitivity.entries(study.config):
            points += sensitivity_points(study, model, entry)
    return {
        # Without the title: a new one costs a new report, not new tables.
        "study": {name: value for name, value in study.config.items() if name != "title"},
        "models": {n: _described(model) for n, model in study.models.items()},
        "schemes": study.schemes,
        "gpus": study.gpus,
        "contenders": study.contenders,
        "workloads": study.workloads,
        "checkpoints": checkpoints,
        "layers": [p for entry in checkpoints for p in layer_points(study.config, entry, dataset_keys(study))],
        "points": points,
        "skips": skips,
    }


def _described(model):
    named = ("key", "source", "config", *(["weights"] if dummy.is_dummy(model) else []))
    return {name: model[name] for name in named}


def unstaged_message(study):
    """What has to be staged first, and how."""
    names = ", ".join(f"{name!r} of {kind}" for kind, name in study.unstaged)
    return f"not staged yet: {names}; on a machine with network run `snakemake staging` with the same config"


def requirements(environment):
    """The pin file of an environment."""
    return ROOT / "envs" / f"{environment}.txt"


def environment(study, name):
    """(pin file, the site's own entry or None) of an environment: what its versions are taken from."""
    return requirements(name), study.cluster["environments"].get(name)


def quantize_environment(study):
    """Name of the environment that quantizes: the CPU build unless the study has a GPU to quantize on."""
    cpu_only = all(entry["environment"].endswith("-cpu") for entry in study.gpus.values())
    return "quantize-cpu" if cpu_only else "quantize-cuda"


def checkpoint(study, model, scheme):
    """The manifest's entry of a variant; a scheme that nothing is quantized for serves weights as they were staged."""
    recipe = study.schemes[scheme]
    if dummy.is_dummy(study.models[model]):
        identity = dummy.checkpoint_identity(study.models[model]["key"], recipe)
        found = {"model": model, "scheme": scheme, "quantized": False, "weights": dummy.WEIGHTS}
        return {**found, "key": key(identity), "identity": identity}
    entry = {"model": model, "scheme": scheme, "quantized": recipe["toolkit"] == "llmcompressor"}
    if not entry["quantized"]:
        staged = study.prequantized.get((model, scheme), study.models[model])
        return {**entry, "key": staged["key"], "identity": staged["identity"]}
    calibration = calibrations.calibration_of(study.config, recipe)
    if calibration:
        entry["calibration"] = calibrations.label(calibration)
        calibration = calibrations.identity(calibration, dataset_keys(study))
    identity = {
        "artefact": "checkpoint",
        "model": study.models[model]["key"],
        "recipe": recipe_identity(recipe),
        "calibration": calibration,
        "versions": toolkit_versions(*environment(study, quantize_environment(study))),
    }
    if "spare" in recipe:
        entry["spare"] = _spare(study, model, scheme)
        identity["spare"] = sensitivity.spare_identity(entry["spare"])
    return {**entry, "key": key(identity), "identity": identity}


def sensitivity_points(study, model, entry):
    """Points of an entry of `sensitivity`, one per part of the model: of a checkpoint, on no device in particular."""
    scheme = entry["scheme"]
    common = {"artefact": "point", "gpu": None, "checkpoint": checkpoint(study, model, scheme)["key"]}
    versions = toolkit_versions(*environment(study, quantize_environment(study)))
    # What quantized is in the checkpoint's key; these two compute.
    versions = {name: versions[name] for name in ("compressed-tensors", "torch")}
    shared = {name: entry[name] for name in ("split", "documents", "max_tokens")}
    shared |= {"dataset": study.datasets[entry["dataset"]]["key"]}
    found = sensitivity.parts(study.schemes[scheme], study.models[model]["config"], entry["per"])
    points = []
    for name, part in found.items():
        point = _point("sensitivity", None, model, scheme, common, versions, {"part": name, **shared})
        labels = {"part": {"name": name, **part}, "per": entry["per"], "dataset_name": entry["dataset"]}
        points.append(point | labels)
    return points


def _spare(study, model, scheme):
    """{"share", "parts"} of a scheme that spares the worst parts of another one: see sensitivity.spared_layers."""
    spare, entry = study.schemes[scheme]["spare"], sensitivity.spare_entry(study.config, study.schemes[scheme])
    points = sensitivity_points(study, model, entry)
    found = {}
    for point in points:
        part = point["part"]
        if part["name"] != sensitivity.ALL:
            found[part["name"]] = {"layers": part["layers"], "parameters": part["parameters"], "point": point["key"]}
    return {"share": spare["share"], "parts": found}


def dataset_keys(study):
    return {name: entry["key"] for name, entry in study.datasets.items()}


def engine_arguments(study, model, scheme):
    """vLLM's engine arguments of a variant: the study's, the scheme's, and what makes measurements comparable."""
    arguments = engine_args.engine_arguments(study.config["engine"], study.schemes[scheme])
    if dummy.is_dummy(study.models[model]):
        arguments |= dummy.engine_arguments(study.schemes[scheme])
    if study.models[model]["trust_remote_code"]:
        arguments["trust_remote_code"] = True
    return arguments


def engine_refuses(gpu_entry):
    """Why a GPU cannot run anything that the pinned engine's build of torch computes, or None."""
    if gpu_entry["environment"].endswith("-cpu"):
        return None
    return support(None, {}, "fp16", gpu_entry, "float16").reason


def device_refuses(study, scheme, gpu_entry):
    """Why a GPU cannot run a scheme, by the rules of support.py, or None. A CPU is asked: it hangs on its instruction set."""
    recipe = study.schemes[scheme]
    if gpu_entry["environment"].endswith("-cpu"):
        return None
    dtype = engine_args.dtype_of(study.config["engine"], recipe)
    found = support(recipe["format"], recipe["engine_args"], recipe["computes"], gpu_entry, dtype)
    return found.reason if found.level == "unsupported" else None


def _stages(study):
    """The stages of a variant that the study asks for."""
    return [
        "load",
        *(stage for stage in MEASURED if study.config.get(stage)),
        *(["search"] if study.config.get("serving", {}).get("search") else []),
    ]


def _scheme_versions(study, gpu, scheme, versions):
    """The engine's versions and those of the packages that a scheme needs of it. Absent from the environment, absent from
    the identity: once it is pinned, the points are measured anew."""
    pin_file, brought = environment(study, study.gpus[gpu]["environment"])
    has = brought["versions"] if brought else pins(pin_file)
    return versions | {n: has[n] for n in study.schemes[scheme].get("engine_packages", []) if n in has}


def _support_point(study, gpu, scheme, device, versions):
    recipe, entry = study.schemes[scheme], study.gpus[gpu]
    versions = _scheme_versions(study, gpu, scheme, versions)
    parameters = {"format": recipe["format"], "engine_args": recipe["engine_args"]}
    dtype = engine_args.dtype_of(study.config["engine"], recipe)
    parameters |= {"dtype": dtype, "capability": entry["compute_capability"]}
    if backend := engine_args.forced_backend(study.config["engine"], recipe):
        parameters["engine_args"] = parameters["engine_args"] | {"linear_backend": backend}
    return _point("support", gpu, None, scheme, device, versions, parameters)


def data_parameters(study, entry):
    """What an entry of accuracy, perplexity or fidelity puts into its points' identities: its data by their key."""
    parameters = {name: value for name, value in entry.items() if name not in ("dataset", "task")}
    if entry["task"]:
        parameters["task"] = slug(entry["task"])
        parameters |= {"definition": definition(entry["task"])} if is_file(entry["task"]) else {}
    if entry["dataset"]:
        return parameters | {"dataset": study.datasets[entry["dataset"]]["key"]}
    # The definition says which splits.
    parameters = {name: value for name, value in parameters.items() if name not in ("split", "fewshot_split")}
    return parameters | {"staged": study.tasks[slug(entry["task"])]["key"]}


def data_name(study, entry):
    """What tables call the data of such an entry: as the study does; of a task by name, its data set on the hub."""
    if entry["dataset"]:
        return entry["dataset"]
    if "questions" not in entry:
        return slug(entry["task"])
    return ", ".join(sorted(study.tasks[slug(entry["task"])]["identity"]["data"]))


def data_names(study, section):
    """data_name of each entry of a section; of those that tables could not tell apart, with what they differ in."""
    entries = study.config.get(section, [])
    told = [(data_name(study, e), *(e.get(n) for n in ("shots", "chat_template")), e["task"]) for e in entries]
    names = []
    for entry, mine in zip(entries, told, strict=True):
        alike = [other for other, place in zip(entries, told, strict=True) if place == mine]
        differing = [name for name in entry if any(other[name] != entry[name] for other in alike)]
        said = [f"{n.replace('_', ' ')} {'all' if entry[n] is None else entry[n]}" for n in differing]
        names.append(", ".join([mine[0], *said]))
    return names


def reference_point(study, gpu, model, parameters):
    """The baseline's point that a fidelity point of this model on this gpu is compared with."""
    scheme, entry = study.config["baseline"], study.gpus[gpu]
    has = environment(study, entry["environment"])
    versions = _scheme_versions(study, gpu, scheme, engine_versions(*has)) | scoring_versions(*has)
    common = {"artefact": "point", "gpu": gpu, "epoch": entry["epoch"]}
    common |= {"checkpoint": checkpoint(study, model, scheme)["key"]}
    common |= {"engine_args": engine_arguments(study, model, scheme)}
    return _point("reference", gpu, model, scheme, common, versions, parameters)


def _variant_points(study, gpu, variant, device, versions, start=1, emulate=False):
    """Points of one variant on one gpu that need the whole model: load, latency, throughput, serving, quality.

    start    2 for the second run of the baseline, whose points are the same but for that
    emulate  with other kernels than the device's, which identities say
    """
    model, scheme, config = variant["model"], variant["scheme"], study.config
    common = device | {"checkpoint": variant["key"], "engine_args": engine_arguments(study, model, scheme)}
    common |= {"start": start} if start > 1 else {}
    common |= emulated.identity(common["engine_args"]) if emulate else {}
    versions = _scheme_versions(study, gpu, scheme, versions)
    scoring = versions | scoring_versions(*environment(study, study.gpus[gpu]["environment"]))

    def points(stage, parameters, versions=versions, **labels):
        labels |= {"start": start} if start > 1 else {}
        return [{**_point(stage, gpu, model, scheme, common, versions, p), **labels} for p in parameters]

    found = points("load", [{}])
    for stage in ("latency", "throughput"):
        for each in sweeps.points(config.get(stage), study.workloads):
            label = workloads.label_of(each, study.workloads)
            named = {"workload": label} if label else {}
            found += points(stage, [{**each, "repeats": config["repeats"]}], **named)
    for stage in ("accuracy", "perplexity"):
        for entry, name in zip(config.get(stage, []), data_names(study, stage), strict=True):
            found += points(stage, [data_parameters(study, entry)], scoring, dataset_name=name)
    for entry, name in zip(config.get("fidelity", []), data_names(study, "fidelity"), strict=True):
        parameters = data_parameters(study, entry)
        reference = reference_point(study, gpu, model, parameters)
        if scheme == config["baseline"] and start == 1:
            found.append({**reference, "dataset_name": name})
        else:
            parameters = {"top_k": entry["top_k"], "reference": reference["key"]}
            found += points("fidelity", [parameters], dataset_name=name)
    if "serving" in config:
        named = {name: study.workloads[name] for name in config["serving"]["workloads"]}
        asked = {"serving": serving_parameters(config["serving"], named)}
        asked["search"] = search_parameters(config["serving"], named, PROTOCOL["serving"])
        for stage, parameters in asked.items():
            for each in parameters:
                label = workloads.label_of(each.get("send", each), named)
                found += points(stage, [each], **({"workload": label} if label else {}))
    return found


def _emulated_points(study, gpu, variant, device, versions):
    """The quality points of a variant once more, in an engine start whose kernels are emulated, where the study asks for it."""
    if dummy.is_dummy(variant) or not emulated.is_emulated(study, variant["scheme"], study.gpus[gpu]):
        return []
    found = _variant_points(study, gpu, variant, device, versions, emulate=True)
    return [{**point, "emulated": True} for point in found if point["stage"] in emulated.STAGES]


def _gemm_points(study, gpu, refused, no_engine, device, versions):
    """(points, skips) of a gpu's matrix products: the schemes' formats through the engine, then the contenders.

    Schemes of one format share their points, since their kernels are the same.

    refused    {scheme: why the gpu cannot run it}
    no_engine  why the gpu can run nothing of the engine's environment, or None
    """
    asked = study.config.get("kernels")
    if not asked:
        return [], []
    points, skips = [], []
    engine, devices = study.config["engine"], asked["tensor_parallel_size"]
    owners = {name: layer_shapes(model["config"], devices) for name, model in study.models.items()}
    owners |= {name: shapes_of(entry, devices) for name, entry in study.shapes.items()}

    def add(owner, shape, format, contender, dtype, scheme=None, name=None):
        common = device | {"format": format, "contender": contender}
        for product in asked["products"]:
            for m in asked["tokens"]:
                parameters = {"n": shape["n"], "k": shape["k"], "m": m, "dtype": dtype, "product": product}
                parameters["repeats"] = study.config["repeats"]
                point = _point("gemm", gpu, owner, scheme, common, versions, parameters)
                points.append(point | {"layer": shape["layer"], "contender": name})

    for scheme, recipe in study.schemes.items():
        reason = refused.get(scheme)
        if recipe["format"] is None and recipe["engine_args"]:
            reason = (
                "quantized by the engine while it loads: there is no checkpoint format to build a single layer from"
            )
        for owner, shapes in owners.items():
            if reason:
                label = {"gpu": gpu, "model": owner, "scheme": scheme}
                skips += [{"stage": "gemm", **label, "reason": reason}]
                continue
            for shape in shapes:
                # Schemes leave the output head in 16 bits: its product is the baseline's.
                quantized = shape["layer"] not in recipe["ignore"]
                forced = forced_layer(recipe, engine_args.forced_backend(engine, recipe)) if quantized else None
                dtype = engine_args.dtype_of(engine, recipe)
                add(owner, shape, recipe["format"] if quantized else None, forced, dtype, scheme=scheme)
    for name, spec in study.contenders.items():
        reason = no_engine or device_refusal(spec, study.gpus[gpu])
        if reason:
            label = {"gpu": gpu, "model": None, "scheme": None, "contender": name}
            skips.append({"stage": "gemm", **label, "reason": reason})
            continue
        for owner, shapes in owners.items():
            for shape in shapes:
                if shape["layer"] != "lm_head" or spec["format"] is None:
                    add(
                        owner,
                        shape,
                        spec["format"],
                        contender_identity(spec),
                        spec["dtype"] or engine["dtype"],
                        name=name,
                    )
    return points, skips


def _point(stage, gpu, model, scheme, common, versions, parameters):
    identity = common | {"stage": stage, "protocol": PROTOCOL[stage], "versions": versions, "params": parameters}
    return {"key": key(identity), "stage": stage, "gpu": gpu, "model": model, "scheme": scheme, "identity": identity}
