"""What a study's `serving` section asks for: the parameters of every load, of its search, and of the search's probes.

Pure and light: whoever plans a study imports it.
"""

import math

from quantbench.keys import canonical_json

# What one user of a closed loop sends at least: from fewer, the start and the end of the load are most of it.
REQUESTS_PER_SLOT = 10
# In a study and on a chart's axis: every request at once, whose rate is said to be infinite.
AT_ONCE = "inf"
POISSON = 1
# Lengths that a load asks for; under these names tables have what the server counted.
SENT = ("input_tokens", "output_tokens")
# Means of a chat, where only the file itself says more (Kwon et al. 2023, PagedAttention, 6.1: ShareGPT).
GUESSED_LENGTHS = (161, 338)


def serving_parameters(serving, workloads):
    """Parameters of every load that a `serving` section asks for, as dicts.

    workloads  {name: what goes into the identity}; see workloads.py

    A rate's load is a Poisson process unless `burstiness` is among its parameters. More requests than the study's
    `requests` are asked for where a slot would get fewer than REQUESTS_PER_SLOT, or the load would last less than the
    `least_duration_s`; of a closed loop only the clock can tell, so there it is a parameter.
    """
    loads = []
    for rate in serving.get("request_rates", []):
        if rate == AT_ONCE:
            loads.append({"load": "all_at_once", "requests": serving["requests"]})
            continue
        loads += [_rate(rate, burstiness, serving) for burstiness in serving["burstiness"]]
    for users in serving.get("concurrencies", []):
        requests = max(serving["requests"], REQUESTS_PER_SLOT * users)
        loads.append({"load": "concurrency", "concurrency": users, "requests": requests, **_given(serving)})
    return [{**load, **asked, "seed": serving["seed"]} for asked in _asked(serving, workloads) for load in loads]


def search_parameters(serving, workloads, protocol):
    """Parameters of every search for the highest rate within the SLO; `protocol` is that of its probes."""
    search, slo = serving.get("search"), serving.get("slo")
    if not search:
        return []
    limits = {name: value for name, value in slo.items() if value is not None}
    rest = {"requests": serving["requests"], "seed": serving["seed"], **_given(serving)}
    rest |= _burstiness(serving["burstiness"][0])
    return [
        {**search, "slo": limits, "send": {**asked, **rest}, "probe_protocol": protocol}
        for asked in _asked(serving, workloads)
    ]


def probe_parameters(search, rate_per_s):
    """Parameters of the load that a search sends at one rate: those of the same load asked for by a study."""
    send = dict(search["send"])
    serving = {"requests": send.pop("requests")}
    serving |= {name: send.pop(name) for name in ("ramp_s", "least_duration_s") if name in send}
    return {**_rate(rate_per_s, send.pop("burstiness", POISSON), serving), **send}


def columns(stage, parameters):
    """Those parameters of a serving or search point that are columns under another name or in another form."""
    send = parameters["send"] if stage == "search" else parameters
    found = {f"{name}_asked": send.get(name) for name in SENT}
    if stage == "search":
        found["slo"] = canonical_json(parameters["slo"])
    if stage == "search" or parameters["load"] == "rate":
        found["burstiness"] = send.get("burstiness", POISSON)
    return found


def mean_lengths(parameters):
    """(prompt tokens, generated tokens) of a load's requests on average; a guess for a file's."""
    if "workload" not in parameters:
        return parameters["input_tokens"], parameters["output_tokens"]
    workload = parameters["workload"]
    if "sha256" in workload:
        return GUESSED_LENGTHS
    return workload["input_tokens"]["mean"], workload["output_tokens"]["mean"]


def _rate(rate, burstiness, serving):
    requests = max(serving["requests"], math.ceil(rate * serving.get("least_duration_s", 0)))
    ramp = {"ramp_s": serving["ramp_s"]} if serving.get("ramp_s") else {}
    # A search comes by 16.0 where a study says 16: one load.
    rate = int(rate) if float(rate).is_integer() else rate
    return {"load": "rate", "rate_per_s": rate, "requests": requests, **_burstiness(burstiness), **ramp}


def _burstiness(value):
    return {} if value == POISSON else {"burstiness": value}


def _given(serving):
    """Those of the two times that the study sets: a parameter at its default is in no identity."""
    return {name: serving[name] for name in ("ramp_s", "least_duration_s") if serving.get(name)}


def _asked(serving, workloads):
    fixed = [dict(length) for length in serving.get("lengths", [])]
    return fixed + [{"workload": workloads[name]} for name in workloads]
