"""What the timed matrix products say: each beside its floor and the baseline, the winners, and where a scheme stops paying.

Takes the gemm table (a polars frame with the columns of table_schema.py) and returns lists of plain dicts. Only primary
rows count: measured (`ok`), weights from memory (`cold`), replayed from a CUDA graph where there are such rows, else
launched call by call. Speedups are the baseline's time over the other's: above 1 is faster.
"""

import functools
import math

import numpy as np
import polars as pl

from quantbench import statistics
from quantbench.verdict import NO_DIFFERENCE

# A product on one device; `model` is a model or a set of shapes.
PLACE = ("gpu", "model", "layer", "n", "k")

CANNOT_TELL = "cannot tell"


def cells(gemm, baseline, product="linear", confidence=0.95):
    """[{...}], one per gpu, model, layer (n, k), m and entry: a scheme, or a contender timed beside the schemes.

    gpu, model, layer, n, k, m   which product
    entry, kind                  name, and "scheme" or "contender"
    same_as                      the earlier entry whose very measurements these are: schemes of one format share them,
                                 and a layer that a scheme leaves alone is the baseline's. Null for an entry of its own
    kernel, computes, launch, includes_quantization, relative_error (the greatest), error_bound, bytes, operations
    repeats, invalid_repeats     repeats that count, and those that do not (throttled, say)
    median_s, low_s, high_s      of the repeats, with the interval; no interval below 2 repeats
    floor_s, datasheet_floor_s   least time by the measured and by the data sheet's ceilings; null without those
    share, share_low, share_high, datasheet_share   floor over median: how much of the ceiling is reached
    predicted_speedup, datasheet_predicted_speedup  the baseline's floor over this one
    observed_speedup, observed_low, observed_high   the baseline's time over this one, both launched the same way
    times, baseline_times        the repeats themselves
    """
    keys = (*PLACE, "m", "kind", "entry")
    found, baselines = [], {}
    for here, rows in _grouped(_primary_candidates(gemm, product), keys):
        by_launch = {}
        for row in rows:
            if row["status"] == "ok" and row["latency_s"] is not None:
                by_launch.setdefault(row["launch"], []).append(row)
        if not by_launch:
            continue
        if (here["kind"], here["entry"]) == ("scheme", baseline):
            baselines[_where(here)] = by_launch
        launch = "graph" if "graph" in by_launch else next(iter(by_launch))
        invalid = sum(row["status"] != "ok" and row["launch"] == launch for row in rows)
        found.append(here | _measured(by_launch[launch], confidence) | {"invalid_repeats": invalid})
    for cell in found:
        cell |= _beside(cell, baselines.get(_where(cell), {}).get(cell["launch"]), confidence)
    return _with_sharers(found, baseline)


def winners(cells, confidence=0.95):
    """[{...}], one per product and m: which entry is the fastest, or which cannot be told from it.

    gpu, model, layer, n, k, m
    best, second                 least and next median; second is null where only one entry was timed
    ratio, low, high             time of the second over that of the best, with its interval
    undecided                    entries whose time does not differ significantly from the best's
    candidates                   how many were compared
    verdict                      "wins", "no significant difference", "cannot tell" (a single repeat), "alone"

    Each other is compared with the best by the bootstrap of the ratio of their medians; Holm's adjustment is over all
    of them. An entry does not count that leaves quantizing its activations out, that shares another's measurements, or
    that is launched in another way than its rivals.
    """
    found = []
    for here, group in _grouped([cell for cell in cells if _counts(cell)], (*PLACE, "m")):
        launches = {cell["launch"] for cell in group}
        rivals = [cell for cell in group if cell["launch"] == ("graph" if "graph" in launches else cell["launch"])]
        best, *others = sorted(rivals, key=lambda cell: cell["median_s"])
        result = here | {"best": best["entry"], "second": None, "ratio": None, "low": None, "high": None}
        result |= {"undecided": [], "candidates": len(rivals), "verdict": "alone"}
        if others:
            second = others[0]
            estimate = statistics.ratio_of_medians_ci(best["times"], second["times"], confidence)
            result |= {"second": second["entry"]} | dict(zip(("ratio", "low", "high"), estimate, strict=True))
            result |= _undecided(best, others, 1 - confidence)
        found.append(result)
    return found


def crossovers(cells, baseline, confidence=0.95):
    """[{...}], one per product and entry: between which M it is faster than the baseline.

    gpu, model, layer, n, k, entry, kind
    tokens, speedups             the M measured for both, rising, and the observed speedups there
    outcome                      "stops" (faster up to `at`), "starts" (faster from `at` on), "always", "never"
    at                           M where the observed speedup is 1, interpolated between the logarithms; null for always, never
    low, high                    its interval: bootstrap over the repeats of every M. Null where it leaves the range of
                                 M (`low_open`, `high_open`), or where an M has a single repeat (`interval` is false)
    then                         further crossings, [("stops" or "starts", M)]: a curve that turns again
    unclear                      the M at which the speedup's own interval holds 1

    Nothing is said of an entry that shares the baseline's measurements, nor of a product with fewer than two M.
    """
    found = []
    for here, group in _grouped(cells, (*PLACE, "kind", "entry")):
        mine = [c for c in group if c["observed_speedup"] is not None and c["same_as"] != baseline]
        if (here["kind"], here["entry"]) == ("scheme", baseline) or len(mine) < 2:
            continue
        mine.sort(key=lambda cell: cell["m"])
        tokens, speedups = [c["m"] for c in mine], [c["observed_speedup"] for c in mine]
        turns = _crossings(np.log(tokens), np.log(speedups))
        result = here | {"tokens": tokens, "speedups": speedups, "at": None, "low": None, "high": None}
        result |= {"low_open": False, "high_open": False, "interval": False, "then": turns[1:]}
        result["unclear"] = [c["m"] for c in mine if c["observed_low"] and c["observed_low"] <= 1 <= c["observed_high"]]
        if turns:
            result["outcome"], result["at"] = turns[0]
            result |= _crossing_interval(mine, result["outcome"], confidence)
        else:
            result["outcome"] = "always" if speedups[0] > 1 else "never"
        found.append(result)
    return found


def relu_speedups(gemm, baseline, expected, confidence=0.95):
    """The cells of ReLU-then-linear, each with `expected_speedup` beside its observed one; the baseline's are left out.

    expected(cell)   the speedup that the roofline allows, or None: performance_model.py's, by torchao's definition
    """
    found = cells(gemm, baseline, "relu_linear", confidence)
    others = [c for c in found if (c["kind"], c["entry"]) != ("scheme", baseline) and c["same_as"] != baseline]
    return [cell | {"expected_speedup": expected(cell)} for cell in others]


# --- cells ----------------------------------------------------------------------------------------------------------


def _primary_candidates(gemm, product):
    """Rows of one kind of product with weights from memory, an entry's name and kind beside each, as dicts."""
    kind = pl.when(pl.col("contender").is_null()).then(pl.lit("scheme")).otherwise(pl.lit("contender"))
    frame = gemm.filter(pl.col("product") == product, pl.col("cache") == "cold")
    return frame.with_columns(kind=kind, entry=pl.coalesce("contender", "scheme")).to_dicts()


def _measured(rows, confidence):
    """What the repeats of one cell say by themselves."""
    first, times = rows[0], [row["latency_s"] for row in rows]
    median, low, high = statistics.median_ci(times, confidence)
    names = ("kernel", "computes", "launch", "includes_quantization", "error_bound", "bytes", "operations")
    cell = {name: first[name] for name in (*names, "floor_s", "datasheet_floor_s")}
    errors = [row["relative_error"] for row in rows if row["relative_error"] is not None]
    cell |= {"relative_error": max(errors, default=None), "repeats": len(times), "times": times}
    cell |= {"median_s": median, "low_s": low, "high_s": high, "run": first["run_id"]}
    floor = cell["floor_s"]
    return cell | {
        "share": _over(floor, median),
        "share_low": _over(floor, high),
        "share_high": _over(floor, low),
        "datasheet_share": _over(cell["datasheet_floor_s"], median),
    }


def _beside(cell, baseline_rows, confidence):
    """What one cell says beside the baseline's rows of the same launch; None: there are none."""
    names = ("predicted_speedup", "datasheet_predicted_speedup", "observed_speedup", "observed_low", "observed_high")
    if baseline_rows is None:
        return dict.fromkeys((*names, "baseline_times"))
    base, times = baseline_rows[0], [row["latency_s"] for row in baseline_rows]
    estimate = _ratio(tuple(cell["times"]), tuple(times), confidence)
    predicted = [_over(base[name], cell[name]) for name in ("floor_s", "datasheet_floor_s")]
    return dict(zip(names, (*predicted, *estimate), strict=True)) | {"baseline_times": times}


# Schemes of one format share their measurements, and so what follows from them.
@functools.lru_cache(maxsize=4096)
def _ratio(times, baseline_times, confidence):
    return statistics.ratio_of_medians_ci(times, baseline_times, confidence)


def _with_sharers(found, baseline):
    """The cells with `same_as`: one point of the store that several entries of a study point to."""
    firsts = {}
    # The baseline lends its measurements to others, never the other way round.
    for cell in sorted(found, key=lambda cell: (cell["kind"], cell["entry"]) != ("scheme", baseline)):
        place = (*_where(cell), cell.pop("run"), cell["kernel"], cell["launch"], tuple(cell["times"]))
        first = firsts.setdefault(place, cell["entry"])
        cell["same_as"] = None if first == cell["entry"] else first
    return found


def _where(cell):
    return tuple(cell[name] for name in (*PLACE, "m"))


def _over(above, below):
    return None if above is None or not below else above / below


# --- winners --------------------------------------------------------------------------------------------------------


def _counts(cell):
    return cell["same_as"] is None and cell["includes_quantization"] is not False


def _undecided(best, others, alpha):
    """{"undecided", "verdict"} of the best entry among others."""
    p_values = [statistics.p_of_equal_medians(best["times"], other["times"]) for other in others]
    # A single repeat says nothing about chance: that entry stays undecided.
    adjusted = statistics.holm([1.0 if p is None else p for p in p_values])
    undecided = [other["entry"] for other, p in zip(others, adjusted, strict=True) if p >= alpha]
    if not undecided:
        return {"undecided": [], "verdict": "wins"}
    unknown = all(p is None for p in p_values)
    return {"undecided": undecided, "verdict": CANNOT_TELL if unknown else NO_DIFFERENCE}


def _resampled_medians(times, stream):
    return statistics.resampled_quantiles(np.asarray(times, float), 0.5, stream)


# --- crossovers -----------------------------------------------------------------------------------------------------


def _crossings(log_tokens, log_speedups):
    """[("stops" or "starts", M)] of one curve, rising: where the speedup, in straight lines between logarithms, is 1."""
    found = []
    for i in range(len(log_tokens) - 1):
        here, after = log_speedups[i], log_speedups[i + 1]
        if (here > 0) != (after > 0):
            at = log_tokens[i] + (log_tokens[i + 1] - log_tokens[i]) * here / (here - after)
            found.append(("stops" if here > 0 else "starts", float(np.exp(at))))
    return found


def _crossing_interval(group, outcome, confidence):
    """{"interval", "low", "high", "low_open", "high_open"} of the first crossing of cells at rising M.

    Each resample has its own curve and its own first crossing of that kind. One without any lies beyond the range: a
    scheme that there always pays stops above it, one that never does below.
    """
    if any(min(len(cell["times"]), len(cell["baseline_times"])) < 2 for cell in group):
        return {}
    ratios = [
        _resampled_medians(cell["baseline_times"], 2 * i) / _resampled_medians(cell["times"], 2 * i + 1)
        for i, cell in enumerate(group)
    ]
    x, y = np.log([cell["m"] for cell in group]), np.log(np.column_stack(ratios))
    pays = y > 0
    turns = pays[:, :-1] & ~pays[:, 1:] if outcome == "stops" else ~pays[:, :-1] & pays[:, 1:]
    rows, first = np.arange(len(y)), turns.argmax(axis=1)
    here, after = y[rows, first], y[rows, first + 1]
    # Rows that do not turn divide by what does not matter.
    at = x[first] + np.diff(x)[first] * here / np.where(here == after, 1, here - after)
    beyond = np.where(pays[:, -1] == (outcome == "stops"), np.inf, -np.inf)
    at = np.where(turns.any(axis=1), at, beyond)
    tail = (1 - confidence) / 2
    # A resample's own value: between a finite and an infinite one there is nothing to interpolate.
    low, high = np.quantile(at, [tail, 1 - tail], method="inverted_cdf")
    ends = {"low_open": not math.isfinite(low), "high_open": not math.isfinite(high)}
    ends |= {"low": None if ends["low_open"] else float(np.exp(low))}
    return ends | {"high": None if ends["high_open"] else float(np.exp(high)), "interval": True}


# --- lists ----------------------------------------------------------------------------------------------------------


def _grouped(cells, keys):
    """[({key: value}, cells)] in order of appearance; also of a table's rows."""
    groups = {}
    for cell in cells:
        groups.setdefault(tuple(cell[name] for name in keys), []).append(cell)
    return [(dict(zip(keys, values, strict=True)), group) for values, group in groups.items()]
