"""How many requests a second one copy of a variant carries within the SLO: the highest rate that met it, and how sure that is.

Requests of users come at random, so loads by rate count, those of the study and of its search alike; a closed loop waits for
its own answers. A copy is what serves the model: one device, or as many as it is divided among. Pure.
"""

import math

import numpy as np

from quantbench import goodput
from quantbench.cost import ASKED
from quantbench.paired import wilson
from quantbench.rate_search import bracket

PLACE = ("gpu", "model", "scheme", *ASKED)
# More requests or questions than anybody sends: what takes more cannot be told.
MOST = 10_000_000


def loads_by_rate(serving, search, slo, confidence=0.95):
    """[{"gpu", "model", "scheme", ASKED..., "rate_per_s", "within", "requests", "low", "high", "met", "tokens"}].

    serving, search  rows of the tables of those names, as dicts, measured ones alone; of a baseline that was started
                     again its first start counts, and a probe that is a load of the study counts once
    within           requests that kept the SLO; low and high are the interval of their share
    tokens           output tokens of a request, on average
    """
    sent, found = {}, []
    for row in serving:
        if row["load"] == "rate" and (row.get("start") or 1) == 1:
            at = (*(row[name] for name in PLACE), row["rate_per_s"], row["burstiness"])
            sent.setdefault(at, []).append(row)
    for (*place, rate, _), rows in sent.items():
        kept = goodput.goodput(rows, slo, confidence)
        told = {name: kept[name] for name in ("within", "requests", "low", "high", "met")}
        tokens = sum(row["output_tokens"] for row in rows) / len(rows)
        found.append({**dict(zip(PLACE, place, strict=True)), "rate_per_s": rate, **told, "tokens": tokens})
    known = {at[:-1] for at in sent}
    for row in search:
        place = tuple(row[name] for name in PLACE)
        again = (*place, row["rate_per_s"]) in known or (row.get("start") or 1) > 1
        if again or row["probe_status"] != "ok" or not row["within_share"]:
            continue
        within = round(row["within_share"] * row["requests"])
        low, high = wilson(within, row["requests"], confidence)
        told = {"within": within, "requests": row["requests"], "low": low, "high": high, "met": row["met"]}
        # Of a load's goodput and its tokens per second the time cancels.
        tokens = row["output_tokens_per_s"] * row["within_share"] / row["goodput_per_s"]
        found.append(
            {**dict(zip(PLACE, place, strict=True)), "rate_per_s": row["rate_per_s"], **told, "tokens": tokens}
        )
    return found


def capacity(loads, slo):
    """(value, low, high) in requests per second of one variant's loads by rate.

    value  the highest rate that met the SLO below the lowest that did not (rate_search.bracket); None: none did
    low    the highest up to there whose whole interval meets it; None: of none is that certain
    high   the lowest whose whole interval misses it, so a bound that is not reached; None: no rate is certain to be too high
    """
    value, _ = bracket(loads)
    high = min((load["rate_per_s"] for load in loads if load["high"] < slo["share"]), default=None)
    certain = [load["rate_per_s"] for load in loads if load["low"] >= slo["share"]]
    low = max((rate for rate in certain if value is not None and rate <= value), default=None)
    return value, low, high


def drawn_capacity(loads, slo, rng, draws):
    """`value` of `capacity` in so many bootstrap resamples of every load's requests; nan where no rate met the SLO.

    To draw n requests with replacement, w of which were within the SLO, is to draw Binomial(n, w / n) of them.
    """
    rates = sorted({load["rate_per_s"] for load in loads})
    met = np.ones((len(rates), draws), bool)
    for load in loads:
        n = load["requests"]
        met[rates.index(load["rate_per_s"])] &= rng.binomial(n, load["within"] / n, draws) / n >= slo["share"]
    below = np.logical_and.accumulate(met, axis=0).sum(axis=0)
    return np.array([np.nan, *rates])[below]


def requests_needed(load, slo, confidence=0.95):
    """About how many requests tell whether a load meets the SLO, were their share what was seen; None: no number would."""
    share = load["within"] / load["requests"]

    def told(n):
        low, high = wilson(share * n, n, confidence)
        return low >= slo["share"] or high < slo["share"]

    return least(told, load["requests"])


def least(told, start):
    """The least whole number from `start` on of which `told` is true, which stays true; None beyond MOST."""
    most = start
    while not told(most):
        most *= 2
        if most > MOST:
            return None
    low = start - 1
    while most - low > 1:
        middle = (low + most) // 2
        low, most = (low, middle) if told(middle) else (middle, most)
    return most


# --- devices ----------------------------------------------------------------------------------------------------------


def copies(load_per_s, rate_per_s):
    """How many copies carry a load, each of them `rate_per_s`. Rounding must not ask for one more: 0.3 / 0.1 is 3."""
    return max(1, math.ceil(load_per_s / rate_per_s - 1e-9))


def break_even(one, other, load_per_s=0.0, most_copies=1000):
    """(requests per second, 0 or 1): the first load above `load_per_s` from which on which of the two is cheaper changes, and
    which then is; None where it does not before one of them has `most_copies`.

    one, other  (requests per second of a copy, $ per hour of a copy)
    Each costs its copies, and needs one more just above every multiple of what a copy carries: there it can change.
    """

    def cheaper(load):
        # Just above the load, where a copy that is full is not enough.
        hourly = [(math.floor(load / rate + 1e-9) + 1) * price for rate, price in (one, other)]
        return None if math.isclose(*hourly) else hourly.index(min(hourly))

    now = cheaper(0.0) if load_per_s == 0 else _cheaper_at(load_per_s, one, other)
    full = {n * rate for rate, _ in (one, other) for n in range(1, most_copies + 1)}
    end = most_copies * min(one[0], other[0])
    for load in sorted(load for load in full if load_per_s <= load * (1 + 1e-9) and load <= end):
        then = cheaper(load)
        if then is not None and then != now:
            return load, then
    return None


def _cheaper_at(load_per_s, one, other):
    hourly = [copies(load_per_s, rate) * price for rate, price in (one, other)]
    return None if math.isclose(*hourly) else hourly.index(min(hourly))
