"""What a study asks of its servers: workloads, limits and a search, and everything wrong with them before anything runs."""

from pathlib import Path

from quantbench import workloads
from quantbench.goodput import LIMITS
from quantbench.serving_points import AT_ONCE
from quantbench.validation import nearest

# Sections with workloads.
STAGES = ("throughput", "serving")
SHIPPED = Path(__file__).parents[3] / "config" / "workloads.yaml"


def asked_workloads(config):
    """Names of the study's workloads."""
    named = [name for stage in STAGES for name in config.get(stage, {}).get("workloads", [])]
    return list(dict.fromkeys(named))


def workload_identities(config, digest):
    """{name: what goes into a point's identity} of the study's workloads; `digest` is a function of a path."""
    names = asked_workloads(config)
    return workloads.identities(names, workloads.load_workloads(SHIPPED), digest) if names else {}


def reference_faults(config):
    """Unknown workloads, an SLO without a limit, a search without an SLO or with bounds the wrong way round."""
    faults = []
    for stage in STAGES:
        if names := config.get(stage, {}).get("workloads"):
            faults += workloads.faults(f"{stage}.workloads", names, workloads.load_workloads(SHIPPED), nearest)
    serving = config.get("serving")
    if not serving:
        return faults
    for i, rate in enumerate(serving.get("request_rates", [])):
        if isinstance(rate, str) and rate != AT_ONCE:
            faults.append(f"serving.request_rates[{i}]: {rate!r} is neither a number nor {AT_ONCE}")
    slo, search = serving.get("slo"), serving.get("search")
    if slo and all(slo.get(name) is None for name in LIMITS):
        faults.append(f"serving.slo: give {', '.join(LIMITS)} or several of them, the most seconds of a request")
    if search and not slo:
        faults.append("serving.search: serving.slo is missing, which says what the rate has to meet")
    if search and search["least_rate_per_s"] >= search["most_rate_per_s"]:
        bounds = f"{search['least_rate_per_s']} is not below most_rate_per_s, {search['most_rate_per_s']}"
        faults.append(f"serving.search.least_rate_per_s: {bounds}")
    return faults


def model_faults(config, model, context):
    """Workloads of which no request fits a model's context."""
    found = []
    for stage in STAGES:
        names = config.get(stage, {}).get("workloads")
        if names and context:
            place = f"{stage}.workloads"
            found += workloads.context_faults(place, names, workloads.load_workloads(SHIPPED), context)
    return [f"{fault} of model {model!r}" for fault in found]
