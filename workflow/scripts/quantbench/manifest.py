"""From a study to its manifest: every artefact and every point with its identity and key, before anything runs."""

from quantbench.environments import engine_versions, pins, toolkit_versions
from quantbench.errors import UserError
from quantbench.keys import key
from quantbench.points import PROTOCOL
from quantbench.roofline import layer_shapes
from quantbench.schemes import recipe_identity
from quantbench.study import ROOT


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
        versions = engine_versions(requirements(entry["environment"]))
        points.append(_point("probe", gpu, None, None, device, versions, {}))
        for variant in checkpoints:
            points += _variant_points(study, gpu, variant, device, versions)
            kernel_points, skip = _gemm_points(study, gpu, variant, device, versions)
            points += kernel_points
            skips += skip
    return {
        # Without the title: a new one costs a new report, not new tables.
        "study": {name: value for name, value in study.config.items() if name != "title"},
        "models": {n: {"key": m["key"], "source": m["source"], "config": m["config"]} for n, m in study.models.items()},
        "schemes": study.schemes,
        "gpus": study.gpus,
        "checkpoints": checkpoints,
        "points": points,
        "skips": skips,
    }


def unstaged_message(study):
    """What has to be staged first, and how."""
    names = ", ".join(f"{name!r} of {kind}" for kind, name in study.unstaged)
    return f"not staged yet: {names}; on a machine with network run `snakemake staging` with the same config"


def requirements(environment):
    """The pin file of an environment."""
    return ROOT / "envs" / f"{environment}.txt"


def quantize_environment(study):
    """Name of the environment that quantizes: the CPU build unless the study has a GPU to quantize on."""
    cpu_only = all(entry["environment"].endswith("-cpu") for entry in study.gpus.values())
    return "quantize-cpu" if cpu_only else "quantize-cuda"


def checkpoint(study, model, scheme):
    """The manifest's entry of a variant; a scheme without a toolkit serves the model's own weights."""
    recipe = study.schemes[scheme]
    entry = {"model": model, "scheme": scheme, "quantized": recipe["toolkit"] != "none"}
    if not entry["quantized"]:
        return {**entry, "key": study.models[model]["key"], "identity": study.models[model]["identity"]}
    calibration = None
    if recipe["calibrated"]:
        calibration = dict(study.config["calibration"])
        calibration["dataset"] = study.datasets[calibration["dataset"]]["key"]
    identity = {
        "artefact": "checkpoint",
        "model": study.models[model]["key"],
        "recipe": recipe_identity(recipe),
        "calibration": calibration,
        "versions": toolkit_versions(requirements(quantize_environment(study))),
    }
    return {**entry, "key": key(identity), "identity": identity}


def engine_arguments(study, model, scheme):
    """vLLM's engine arguments of a variant: the study's, the scheme's, and what makes measurements comparable."""
    arguments = {name: value for name, value in study.config["engine"].items() if value is not None}
    # The same prompt twice would measure the cache.
    arguments |= {"enable_prefix_caching": False, "seed": 0, **study.schemes[scheme]["engine_args"]}
    if study.models[model]["trust_remote_code"]:
        arguments["trust_remote_code"] = True
    return arguments


def _variant_points(study, gpu, variant, device, versions):
    """Points of one variant on one gpu that need the whole model: load, latency, throughput, serving, quality."""
    model, scheme, config = variant["model"], variant["scheme"], study.config
    common = device | {"checkpoint": variant["key"], "engine_args": engine_arguments(study, model, scheme)}
    scoring = versions | {"lm_eval": pins(requirements(study.gpus[gpu]["environment"]))["lm-eval"]}

    def points(stage, parameters, versions=versions, **labels):
        return [{**_point(stage, gpu, model, scheme, common, versions, p), **labels} for p in parameters]

    found = points("load", [{}])
    for stage in ("latency", "throughput"):
        sweep = config.get(stage, {"batch_sizes": [], "lengths": []})
        grid = [{"batch_size": b, **length} for length in sweep["lengths"] for b in sweep["batch_sizes"]]
        found += points(stage, [{**parameters, "repeats": config["repeats"]} for parameters in grid])
    for entry in config.get("accuracy", []):
        name, parameters = entry["dataset"], entry | {"dataset": study.datasets[entry["dataset"]]["key"]}
        found += points("accuracy", [parameters], scoring, dataset_name=name)
    for entry in config.get("perplexity", []):
        name, parameters = entry["dataset"], entry | {"dataset": study.datasets[entry["dataset"]]["key"]}
        found += points("perplexity", [parameters], scoring, dataset_name=name)
    if "serving" in config:
        serving = config["serving"]
        loads = [{"load": "rate", "rate_per_s": rate} for rate in serving.get("request_rates", [])]
        loads += [{"load": "concurrency", "concurrency": n} for n in serving.get("concurrencies", [])]
        rest = {"requests": serving["requests"], "seed": serving["seed"]}
        found += points("serving", [{**load, **length, **rest} for length in serving["lengths"] for load in loads])
    return found


def _gemm_points(study, gpu, variant, device, versions):
    """Points of a variant's matrix products; schemes of one format share them, since their kernels are the same."""
    if "kernels" not in study.config:
        return [], []
    recipe = study.schemes[variant["scheme"]]
    label = {"gpu": gpu, "model": variant["model"], "scheme": variant["scheme"]}
    if recipe["format"] is None and recipe["engine_args"]:
        reason = "quantized by the engine while it loads: there is no checkpoint format to build a single layer from"
        return [], [{"stage": "gemm", **label, "reason": reason}]
    points = []
    dtype, repeats = study.config["engine"]["dtype"], study.config["repeats"]
    for shape in layer_shapes(study.models[variant["model"]]["config"]):
        # Schemes leave the output head in 16 bits: its product is the baseline's.
        quantized = shape["layer"] not in recipe["ignore"]
        common = device | {"format": recipe["format"] if quantized else None}
        for m in study.config["kernels"]["tokens"]:
            parameters = {"n": shape["n"], "k": shape["k"], "m": m, "dtype": dtype, "repeats": repeats}
            points.append(_point("gemm", gpu, label["model"], label["scheme"], common, versions, parameters))
            points[-1]["layer"] = shape["layer"]
    return points, []


def _point(stage, gpu, model, scheme, common, versions, parameters):
    identity = common | {"stage": stage, "protocol": PROTOCOL[stage], "versions": versions, "params": parameters}
    return {"key": key(identity), "stage": stage, "gpu": gpu, "model": model, "scheme": scheme, "identity": identity}
