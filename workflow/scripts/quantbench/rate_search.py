"""The highest request rate that meets an SLO, by bisection within a budget of loads. Pure: the caller sends the loads.

A search is {"least_rate_per_s", "most_rate_per_s", "probes": most loads, ...}; a probe is {"rate_per_s", "met": bool}.
"""

import math

from quantbench.goodput import goodput
from quantbench.keys import key
from quantbench.serving_points import probe_parameters

# Rates closer than this are one: what a load says of its rate is hardly better known.
CLOSE = 1.05


def next_rate(search, probes):
    """The rate to send next, 1/s, or None when the search is over.

    First the least, without which there is nothing to find, then the most, with which there is nothing left to find; then
    the geometric middle between the highest rate that met the SLO and the lowest that did not. Rates have three digits, so
    that the same search of another study finds the same loads in the store.
    """
    sent = {probe["rate_per_s"] for probe in probes}
    if len(probes) >= search["probes"]:
        return None
    least, most = search["least_rate_per_s"], search["most_rate_per_s"]
    if least not in sent:
        return least
    met, missed = bracket(probes)
    if met is None:
        return None
    if missed is None:
        return None if most in sent else most
    middle = float(f"{math.sqrt(met * missed):.3g}")
    return None if missed / met <= CLOSE or middle in sent else middle


def bracket(probes):
    """(highest rate that met the SLO, lowest that did not), None where there is none.

    A rate that met it above one that did not is chance, and does not count: the bracket is below the lowest that did not.
    """
    missed = min((probe["rate_per_s"] for probe in probes if not probe["met"]), default=None)
    met = [p["rate_per_s"] for p in probes if p["met"] and (missed is None or p["rate_per_s"] < missed)]
    return max(met, default=None), missed


def probe_identity(search_identity, rate_per_s):
    """The identity of a search's load at one rate: that of the serving point which a study may ask for itself."""
    params = search_identity["params"]
    probe = {"stage": "serving", "protocol": params["probe_protocol"], "params": probe_parameters(params, rate_per_s)}
    return search_identity | probe


def probe_row(number, identity, record, slo):
    """What a search keeps of a stored load; one that is not ok did not meet the SLO, and says why."""
    row = {"probe": number, "rate_per_s": identity["params"]["rate_per_s"], "probe_key": key(identity), "met": False}
    row |= {
        "probe_status": record["status"],
        "probe_reason": record["reason"],
        "requests": identity["params"]["requests"],
    }
    found = goodput(record["rows"], slo) if record["status"] == "ok" else {}
    names = {"within_share": "share", "within_low": "low", "within_high": "high", "goodput_per_s": "requests_per_s"}
    row |= {column: found.get(name) for column, name in names.items()}
    return row | {"met": found.get("met", False), "output_tokens_per_s": found.get("output_tokens_per_s")}
