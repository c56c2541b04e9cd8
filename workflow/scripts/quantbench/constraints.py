"""The cheapest (scheme, gpu) that meets a study's constraints, by intervals and by bootstrap over the raw rows. Pure.

Constraints are {"recovery": least share of the baseline's right answers, on every task; "load_per_s": requests per second
that have to be carried; "memory_bytes": most memory of a device; "usd_per_hour": most that all devices may cost}, each of
them optional, and the SLO. A figure meets its constraint when its whole interval does, misses it when none of it does, and
is undecided between. A variant is feasible when every figure meets its own, and infeasible when one misses it.

Cost is what the copies that carry the load cost per hour or, without a load, $ per million output tokens at the highest rate
within the SLO. Rates are those that were sent: two variants with the same one at the same price are tied.
"""

import math
from typing import NamedTuple

import numpy as np

from quantbench import capacity as rates
from quantbench import quality
from quantbench.cost import usd_per_million_tokens
from quantbench.decision import why_emulated
from quantbench.paired import recovery_ci

FEASIBLE, INFEASIBLE, UNDECIDED = "feasible", "infeasible", "undecided"
MET, MISSED = "met", "missed"

SEED = 0
# A share of so many is known within 2 points: 1.96 sqrt(0.25 / 2000).
DRAWS = 2000


class Asked(NamedTuple):
    """What a study wants: `limits` as above, the SLO, and what a device costs."""

    limits: dict
    slo: dict
    prices: dict
    # devices that a copy of the model is divided among
    devices: int = 1
    confidence: float = 0.95


def decide(entries, loads, recovered, memory, asked, draws=DRAWS):
    """What one model, asked for one kind of requests, should be served in.

    entries   comparison.summarize's of the model, over all devices
    loads     capacity.loads_by_rate's of the model and these requests
    recovered drawn_recoveries of the model's answers, of as many draws
    memory    {(gpu, scheme): most bytes that the engine held on a device, or None}
    asked     Asked

    {"variants": [{"gpu", "scheme", "is_baseline", "state", "figures", "rate" (value, low, high), "copies", "usd_per_hour",
    "usd_per_million", "cost" (the same, each; None thrice where not known), "tokens" of an answer, "chance"}], feasible ones
     first, by cost;
     "winner", "runner_up": variants or None; "tied": variants that cost the same as the winner, it not among them;
     "break_even": capacity.break_even of winner (0) and runner-up (1), or None; "none": chance that nothing is feasible, None
     where that of some variant is not known; "metric": usd_per_hour or usd_per_million}
    chance   share of the resamples in which the variant is the cheapest that meets every constraint, ties shared; None where
             a figure that it takes was not measured
    figures  [{"constraint", "of", "value", "low", "high", "limit", "state", "why", "needed"}]: constraint is a limit's name, slo,
             or runs, of what cannot be chosen; `of` the task, or the rate of which `needed` requests would tell; `needed` is
             how many questions or requests would, None where none would or the state is no matter of chance
    """
    metric = "usd_per_hour" if asked.limits.get("load_per_s") else "usd_per_million"
    rng = np.random.default_rng(SEED)
    variants, drawn = [], []
    for entry in entries:
        mine = [load for load in loads if (load["gpu"], load["scheme"]) == (entry["gpu"], entry["scheme"])]
        held = memory.get((entry["gpu"], entry["scheme"]))
        variant = _variant(entry, entries, mine, held, asked, metric)
        variants.append(variant)
        drawn.append(_drawn_cost(variant, mine, recovered, asked, metric, rng, draws))
    none = _chances(variants, drawn)
    variants.sort(key=lambda v: (_order(v), v["cost"][0] if v["cost"][0] is not None else math.inf))
    able = [v for v in variants if v["state"] == FEASIBLE and v["cost"][0] is not None]
    winner = able[0] if able else None
    tied = [v for v in able[1:] if math.isclose(v["cost"][0], winner["cost"][0])]
    runner_up = next((v for v in able[1:] if v not in tied), None)
    found = {"variants": variants, "winner": winner, "tied": tied, "runner_up": runner_up, "break_even": None}
    if runner_up:
        pair = [(v["rate"][0], asked.devices * asked.prices[v["gpu"]]) for v in (winner, runner_up)]
        found["break_even"] = rates.break_even(*pair, asked.limits.get("load_per_s") or 0.0)
    return found | {"none": none, "metric": metric}


def _order(variant):
    return (FEASIBLE, UNDECIDED, INFEASIBLE).index(variant["state"])


def _variant(entry, entries, loads, held, asked, metric):
    rate = rates.capacity(loads, asked.slo) if loads else (None, None, None)
    price, tokens = asked.prices.get(entry["gpu"]), None
    if loads:
        tokens = sum(load["tokens"] for load in loads) / len(loads)
    costs = _costs(rate, price, tokens, asked)
    figures = _runs(entry) or _figures(entry, entries, loads, rate, held, price, costs, asked)
    states = {figure["state"] for figure in figures}
    state = INFEASIBLE if MISSED in states else UNDECIDED if UNDECIDED in states else FEASIBLE
    told = {name: entry[name] for name in ("gpu", "scheme", "is_baseline")}
    return (
        {**told, "state": state, "figures": figures, "rate": rate, "tokens": tokens} | costs | {"cost": costs[metric]}
    )


def _figures(entry, entries, loads, rate, held, price, costs, asked):
    figures = [_slo_figure(entry, loads, rate, asked)]
    if asked.limits.get("recovery") is not None and not entry["is_baseline"]:
        figures += _recovery_figures(entry, entries, asked)
    if asked.limits.get("memory_bytes") is not None:
        figures.append(_most("memory_bytes", (held, held, held), asked, "the engine did not say what it held"))
    if asked.limits.get("usd_per_hour") is not None:
        why = "its device has no price" if price is None else "how many copies it takes is not known"
        figures.append(_most("usd_per_hour", costs["usd_per_hour"], asked, why))
    return figures


def _costs(rate, price, tokens, asked):
    """Copies, $ per hour and $ per million tokens at the rates (value, low, high): at the higher rate the lower cost."""
    load_per_s, ends = asked.limits.get("load_per_s"), (rate[0], rate[2], rate[1])
    if load_per_s:
        # However much a copy carries, one is needed.
        copies = [rates.copies(load_per_s, end) if end else None for end in ends]
        copies = tuple([copies[0], copies[1] or (1 if rate[0] else None), copies[2]])
    else:
        copies = (1, 1, 1)
    hourly = million = (None, None, None)
    if price is not None:
        one = asked.devices * price
        hourly = tuple(n and n * one for n in copies)
        million = tuple(end and usd_per_million_tokens(one, end * tokens) for end in ends)
    return {"copies": copies, "usd_per_hour": hourly, "usd_per_million": million}


# --- figures ----------------------------------------------------------------------------------------------------------


def _figure(constraint, estimate, limit, state, of=None, why=None, needed=None):
    value, low, high = estimate
    found = {"constraint": constraint, "of": of, "value": value, "low": low, "high": high, "limit": limit}
    return found | {"state": state, "why": why, "needed": needed}


def _runs(entry):
    """A figure where a variant cannot be chosen whatever its numbers say."""
    why = None
    if entry["status"] not in ("ok", "not measured"):
        why = f"{entry['status'].replace('_', ' ')}: {entry['reason']}"
    elif entry["verdict"] == "unquantized":
        why = "its layers ran unquantized: its numbers are not the scheme's"
    elif said := why_emulated(entry):
        why = f"emulated, so without a speed: {said}"
    return [_figure("runs", (None, None, None), None, MISSED, why=why)] if why else []


def _most(constraint, estimate, asked, why):
    """A figure that has to stay at or below its limit."""
    limit, (_, low, high) = asked.limits[constraint], estimate
    state = MET if high is not None and high <= limit else MISSED if low is not None and low > limit else UNDECIDED
    return _figure(constraint, estimate, limit, state, why=why if estimate[0] is None else None)


def _slo_figure(entry, loads, rate, asked):
    """The SLO at any rate that was sent; the figure is the rate."""
    if not loads:
        failed = next((f for f in entry["failures"] if f["table"] == "serving"), None)
        why = f"{failed['status'].replace('_', ' ')}: {failed['reason']}" if failed else "no load by rate was measured"
        return _figure("slo", rate, None, UNDECIDED, why=why)
    if rate[1] is not None:
        return _figure("slo", rate, None, MET)
    if all(load["high"] < asked.slo["share"] for load in loads):
        return _figure("slo", rate, None, MISSED, why="missed at every rate that was sent")
    # The lowest rate is the easiest to be sure of.
    lowest = min(loads, key=lambda load: load["rate_per_s"])
    needed = rates.requests_needed(lowest, asked.slo, asked.confidence)
    return _figure("slo", rate, None, UNDECIDED, of=lowest["rate_per_s"], needed=needed)


def _recovery_figures(entry, entries, asked):
    base = next((e for e in entries if e["is_baseline"] and e["gpu"] == entry["gpu"]), {"accuracy": []})
    mine = {_questions(found): found for found in entry["accuracy"] if found["decides"]}
    floor, figures = asked.limits["recovery"], []
    for theirs in base["accuracy"]:
        if theirs["decides"]:
            figures.append(_recovery_figure(mine.get(_questions(theirs)), theirs["task"], floor, asked.confidence))
    return figures or [
        _figure("recovery", (None,) * 3, floor, UNDECIDED, why="the baseline's accuracy was not measured")
    ]


def _recovery_figure(found, task, floor, confidence):
    if found is None or found.get("recovery") is None:
        return _figure("recovery", (None,) * 3, floor, UNDECIDED, of=task, why="not measured")
    estimate = tuple(found[name] for name in ("recovery", "recovery_low", "recovery_high"))

    def side(low, high):
        return MET if low >= floor else MISSED if high is not None and high < floor else UNDECIDED

    state, needed = side(*estimate[1:]), None
    if state == UNDECIDED:
        n = found["pairs"]
        base = found["baseline_share"]
        shares = base, base + (found["won"] - found["lost"]) / n, base - found["lost"] / n
        needed = rates.least(
            lambda more: side(*recovery_ci(*(share * more for share in shares), confidence)[1:]) != UNDECIDED, n
        )
    return _figure("recovery", estimate, floor, state, of=task, needed=needed)


def _questions(found):
    return tuple(found[name] for name in quality.TASK)


# --- bootstrap --------------------------------------------------------------------------------------------------------


def drawn_recoveries(entries, accuracy, draws=DRAWS):
    """{(gpu, scheme): [recovery in each resample, one array per deciding task]}, questions drawn for all schemes at once.

    accuracy  rows of the table of that name, of the entries' model, measured ones alone

    What schemes answered to one question hangs together. Questions that all of them answered alike need not be told apart,
    so what is drawn is how often each pattern of answers comes.
    """
    deciding = {(e["gpu"], e["scheme"], _questions(f)) for e in entries for f in e["accuracy"] if f["decides"]}
    rng, answers = np.random.default_rng(SEED), {}
    for row in accuracy:
        place = (row["gpu"], row["scheme"], tuple(row.get(name) for name in quality.TASK))
        if place in deciding and (row.get("start") or 1) == 1:
            answers.setdefault((row["gpu"], place[2]), {}).setdefault(row["scheme"], {})[row["question"]] = row[
                "correct"
            ]
    baselines, found = {e["gpu"]: e["scheme"] for e in entries if e["is_baseline"]}, {}
    for (gpu, _), by_scheme in answers.items():
        base = by_scheme.pop(baselines.get(gpu), None)
        if base is None:
            continue
        # -1: a question that the scheme was not asked.
        table = np.array([[base[q], *(one.get(q, -1) for one in by_scheme.values())] for q in base], int)
        patterns, counts = np.unique(table, axis=0, return_counts=True)
        drawn = rng.multinomial(len(table), counts / len(table), draws)
        for scheme, mine in zip(by_scheme, patterns[:, 1:].T, strict=True):
            right, theirs = drawn @ (mine == 1), drawn @ ((patterns[:, 0] == 1) & (mine >= 0))
            found.setdefault((gpu, scheme), []).append(right / np.maximum(theirs, 1))
    return found


def _drawn_cost(variant, loads, recovered, asked, metric, rng, draws):
    """Its cost in each resample, infinite where it does not meet a constraint; None where that cannot be drawn."""
    price = asked.prices.get(variant["gpu"])
    fixed = [figure for figure in variant["figures"] if figure["constraint"] in ("runs", "memory_bytes")]
    tasks = [figure for figure in variant["figures"] if figure["constraint"] == "recovery"]
    mine = recovered.get((variant["gpu"], variant["scheme"]), [])
    if any(figure["state"] == MISSED for figure in fixed):
        return np.full(draws, np.inf)
    if price is None or not loads or len(mine) < len(tasks) or any(f["state"] == UNDECIDED for f in fixed):
        return None
    rate = rates.drawn_capacity(loads, asked.slo, rng, draws)
    one, load_per_s = asked.devices * price, asked.limits.get("load_per_s")
    hourly = np.full(draws, one)
    if load_per_s:
        hourly = one * np.maximum(1, np.ceil(load_per_s / rate - 1e-9))
    cost = hourly if metric == "usd_per_hour" else usd_per_million_tokens(one, rate * variant["tokens"])
    allowed = ~np.isnan(rate)
    if asked.limits.get("usd_per_hour") is not None:
        allowed &= np.nan_to_num(hourly, nan=np.inf) <= asked.limits["usd_per_hour"]
    for recovery in mine if tasks else []:
        allowed &= recovery >= asked.limits["recovery"]
    return np.where(allowed, cost, np.inf)


def _chances(variants, drawn):
    """Write each variant's `chance`; returns the chance that none is feasible, None where some could not be drawn."""
    known = [costs for costs in drawn if costs is not None]
    for variant in variants:
        variant["chance"] = None
    if not known:
        return None
    costs = np.array(known)
    least = costs.min(axis=0)
    cheapest = np.isfinite(costs) & (costs <= least * (1 + 1e-9))
    shares = iter((cheapest / np.maximum(cheapest.sum(axis=0), 1)).mean(axis=1))
    for variant, one in zip(variants, drawn, strict=True):
        variant["chance"] = None if one is None else float(next(shares))
    return float(np.isinf(least).mean()) if len(known) == len(drawn) else None
