"""What a million generated tokens cost where the service-level objective (SLO) is met: price per hour over tokens per hour.

Never at the peak: a server that is driven harder than its SLO allows makes its cheapest tokens too late to be of use. Of a
variant's loads, serving points and probes of a search alike, the one that counts is the one that generates most tokens per
second among those that met the SLO. Pure.
"""

from quantbench import goodput

SECONDS_PER_HOUR = 3600
MILLION = 1_000_000

# What tells one load of a variant from another, in the table serving.
LOAD = ("load", "rate_per_s", "concurrency", "burstiness", "workload", "input_tokens_asked", "output_tokens_asked")
# The requests that a cost is of: prices of prompts of different lengths are not to be compared.
ASKED = ("workload", "input_tokens_asked", "output_tokens_asked")


def usd_per_million_tokens(price_usd_per_hour, tokens_per_s):
    """$ per million output tokens of a device at this price that generates so many a second."""
    return price_usd_per_hour / SECONDS_PER_HOUR / tokens_per_s * MILLION


def loads_of(serving, search, slo, confidence=0.95):
    """[{"gpu", "model", "scheme", ASKED..., "load", "level", "tokens_per_s", "met", "certain"}]: every load that was sent.

    serving, search  rows of the tables of those names, as dicts, measured ones alone
    certain          whether the interval of the share of requests within the SLO lies above what the SLO asks
    """
    sent = {}
    for row in serving:
        place = tuple(row[name] for name in ("gpu", "model", "scheme", "start", *LOAD))
        sent.setdefault(place, []).append(row)
    found = []
    for requests in sent.values():
        first, kept = requests[0], goodput.goodput(requests, slo, confidence)
        level = first["rate_per_s"] if first["load"] == "rate" else first["concurrency"]
        where = {name: first[name] for name in ("gpu", "model", "scheme", *ASKED)}
        where |= {"load": first["load"], "level": level, "tokens_per_s": kept["output_tokens_per_s"]}
        found.append(where | {"met": kept["met"], "certain": kept["low"] >= slo["share"]})
    for row in search:
        if row["probe_status"] == "ok":
            where = {name: row[name] for name in ("gpu", "model", "scheme", *ASKED)}
            where |= {"load": "rate", "level": row["rate_per_s"], "tokens_per_s": row["output_tokens_per_s"]}
            found.append(where | {"met": row["met"], "certain": row["within_low"] >= slo["share"]})
    return found


def costs(loads, prices, devices=1):
    """[{"gpu", "model", "scheme", ASKED..., "load", "level", "tokens_per_s", "certain", "usd_per_hour",
    "usd_per_million"}], cheapest first within a model and what was asked; one row per variant and device.

    prices   {gpu: $ per hour of one device, or None}; devices: how many a variant is divided among
    A variant none of whose loads met the SLO is there with load, level, tokens_per_s, certain and usd_per_million None;
    one on a device without a price is not.
    """
    best, order = {}, {}
    for load in loads:
        if prices.get(load["gpu"]) is None:
            continue
        asked = tuple(load[name] for name in ("model", *ASKED))
        place = (*asked, load["gpu"], load["scheme"])
        order.setdefault(asked, len(order))
        kept = best.setdefault(place, None)
        if load["met"] and (kept is None or load["tokens_per_s"] > kept["tokens_per_s"]):
            best[place] = load
    rows = []
    for place, load in best.items():
        row = dict(zip(("model", *ASKED, "gpu", "scheme"), place, strict=True))
        row |= {name: load and load[name] for name in ("load", "level", "tokens_per_s", "certain")}
        row["usd_per_hour"] = devices * prices[row["gpu"]]
        row["usd_per_million"] = load and usd_per_million_tokens(row["usd_per_hour"], load["tokens_per_s"])
        rows.append(row)
    dear = float("inf")
    return sorted(
        rows, key=lambda row: (order[tuple(row[n] for n in ("model", *ASKED))], row["usd_per_million"] or dear)
    )
