"""Every scheme beside the baseline, from the tables: speed, accuracy, perplexity, size, each with its uncertainty.

Tables are polars frames or lists of dicts with the columns of table_schema.py. decision.py decides.
"""

from typing import NamedTuple

import numpy as np

from quantbench import quality, statistics
from quantbench.dummy import NOT_MEASURED
from quantbench.kernel_verdict import FLOATS
from quantbench.quality import by_start, grouped, ok
from quantbench.verdict import MARGINS, NO_DIFFERENCE, ratio_words

__all__ = ["MEASURED", "NO_DIFFERENCE", "P99_REQUESTS", "summarize"]

# Below this many requests the p99 has no interval: their slowest may well be faster than the true one.
P99_REQUESTS = statistics.values_to_span(0.99)

# Tables whose rows are measurements of a variant; kernels say what ran, not that anything was measured.
MEASURED = ("throughput", "latency", "serving", "search", "accuracy", "perplexity", "fidelity")


def summarize(tables, baseline, confidence=0.95, power=0.8, margins=MARGINS):
    """[{"gpu", "model", "scheme", ...}] in the tables' order: each scheme on each gpu beside `baseline` there.

    is_baseline   bool
    status        ok when anything of it was measured, else the status of its points, or "not measured"; and `reason`
    failures      [{"table", "status", "reason"}]: points of an ok variant that were not
    verdict       as_promised, emulated, computes_other, unquantized (the worst of its layers), or None; `computes`, `expected`
                  of the layers that earned it; as promised: of those that the scheme quantizes
    refusal       why the engine, or the plan before it, did not load it, or None; an emulated one has both this and numbers
    speed         [{"metric", "batch_size" or ("load", "level", "workload", "burstiness"), "input_tokens", "output_tokens",
                  "gain", "low", "high", "within", "starts", "start_spread", "words", "caveat"}]; gain is how many times
                  faster than the baseline, metric throughput, latency, e2e_p50 or e2e_p99. `within` is the interval [low, high] of the
                  repeats alone; low and high reach over it and over what one start of the engine differs from the next
                  by (`start_spread`, a relative standard deviation), where a variant was started more than once
    batches       the same, without caveat, for throughput and latency at every batch that both ran
    phases        the same for the two phases of a batch, metric prefill or decode
    accuracy      [{"task", "dataset", "shots", "chat_template", "filter", "decides", "n", "share", "low", "high",
                  "emulated"}]; of the baseline also
                  "noise": {"starts", "pairs", "lost", "won", "difference", "difference_low", "difference_high", "p"} of
                  its further starts, or None; where the baseline was asked the same questions also {"pairs",
                  "baseline_share", "difference", "difference_low", "difference_high" (score interval), "bootstrap"
                  [low, high], "recovery", "recovery_low", "recovery_high", "lost", "won", "p", "p_holm", "comparisons",
                  "smallest_detectable", "power", "margin", "questions_needed", "kind", "words", "length"}: see verdict.py
                  for the words, answer_lengths.py for the last (of the deciding filter)
    perplexity    [{"dataset", "perplexity", "ratio", "low", "high", "margin", "kind", "words", "emulated"}], the baseline's
                  with "noise"
    fidelity      [{"dataset", "documents", "tokens", "kl", "kl_low", "kl_high", "top1", "top1_low", "top1_high", "noise",
                  "words", "emulated"}], per token, kl in nats; of the baseline its own noise, where it was started again
    size          {"bytes", "bits_per_weight", "ratio"} or None; ratio is bytes over the baseline's
    """
    variants = variants_of(tables, ("kernels", *MEASURED))
    spreads = start_spreads(variants)
    sizes = {(row["model"], row["scheme"]): row for row in _dicts(tables.get("checkpoints", []))}
    summary = []
    for (gpu, model, scheme), rows in variants.items():
        base = variants.get((gpu, model, baseline), {})
        is_baseline = scheme == baseline
        entry = {"gpu": gpu, "model": model, "scheme": scheme, "is_baseline": is_baseline, "confidence": confidence}
        entry |= _status(rows) | _kernels(rows.get("kernels", []))
        entry["refusal"] = next((row["reason"] for row in rows.get("kernels", []) if row["status"] != "ok"), None)
        chance = Chance(confidence, {metric: spreads.get((gpu, model, metric)) for metric in TIMED})
        entry["batches"] = [] if is_baseline else _batches(base, rows, chance, ("throughput", "latency"))
        entry["phases"] = [] if is_baseline else _batches(base, rows, chance, PHASES)
        entry["speed"] = _ends(base, rows, entry["batches"]) + ([] if is_baseline else _loads(base, rows, chance))
        entry["accuracy"] = quality.accuracy(base, rows, is_baseline, confidence, power)
        entry["perplexity"] = quality.perplexity(base, rows, is_baseline, confidence, margins["perplexity"])
        entry["fidelity"] = quality.fidelity(base, rows, is_baseline, confidence)
        entry["size"] = quality.size(sizes.get((model, baseline)), sizes.get((model, scheme)))
        summary.append(entry)
    quality.adjust(summary, confidence, power, margins["accuracy"])
    return summary


def variants_of(tables, names):
    """{(gpu, model, scheme): {table: its rows as dicts}} of the named tables, in their order."""
    variants = {}
    for name in names:
        for row in _dicts(tables.get(name, [])):
            variant = variants.setdefault((row["gpu"], row["model"], row["scheme"]), {})
            variant.setdefault(name, []).append(row)
    return variants


def _dicts(table):
    return table.to_dicts() if hasattr(table, "to_dicts") else list(table)


def _status(rows):
    measured = [(name, row) for name in MEASURED for row in rows.get(name, [])]
    failures = {}
    # What a device cannot run and is emulated instead is not missing.
    emulated = {name for name, row in measured if row["status"] == "ok" and row.get("emulated")}
    for name, row in measured:
        if row["status"] != "ok" and (row.get("emulated") or name not in emulated):
            failures[name, row["status"], row["reason"]] = {
                "table": name,
                "status": row["status"],
                "reason": row["reason"],
            }
    failures = list(failures.values())
    if any(row["status"] == "ok" for _, row in measured):
        # What dummy weights cannot have has not failed: the report says so once, of the whole model.
        failed = [failure for failure in failures if failure["reason"] != NOT_MEASURED]
        return {"status": "ok", "reason": None, "failures": failed}
    if failures:
        return {"status": failures[0]["status"], "reason": failures[0]["reason"], "failures": []}
    return {"status": "not measured", "reason": "no speed or accuracy was asked for", "failures": []}


def _kernels(rows):
    """The worst verdict of any layer. As promised is told by the layers that the scheme quantizes, if there are any."""
    names = ("verdict", "computes", "expected")
    ran = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row["expected"] in FLOATS)
    for verdict in ("unquantized", "computes_other", "emulated"):
        for row in ran:
            if row["verdict"] == verdict:
                return {name: row[name] for name in names}
    quantized = [row for row in ran if row["expected"] not in FLOATS] or ran
    if not quantized:
        return dict.fromkeys(names)
    # A layer whose kernel is not known leaves the whole scheme without a verdict.
    unknown = next((row for row in quantized if row["verdict"] is None), quantized[0])
    return {name: unknown[name] for name in names}


# --- speed ----------------------------------------------------------------------------------------------------------

# Where a stage's points lie, the times that its rows hold, and the quantiles of them that are compared.
BATCH = ("batch_size", "input_tokens", "output_tokens", "workload")
REQUESTS = ("load", "rate_per_s", "concurrency", "input_tokens_asked", "output_tokens_asked", "workload", "burstiness")
TIMED = {"throughput": ("throughput", BATCH, 0.5), "latency": ("latency", BATCH, 0.5)}
# The two phases of a batch: until every sequence has its first token, and each further token.
PHASES = {"prefill": "ttft_s", "decode": "tpot_s"}
TIMED |= {metric: ("latency", BATCH, 0.5) for metric in PHASES}
TIMED |= {"e2e_p50": ("serving", REQUESTS, 0.5), "e2e_p99": ("serving", REQUESTS, 0.99)}


class Chance(NamedTuple):
    """What intervals are made of besides the repeats: `spreads` {metric: (variance between starts, degrees of freedom)}."""

    confidence: float
    spreads: dict


def seconds(row, metric):
    """The time of a row that a metric is made of; None where it has none (a phase of a batch, of one token say)."""
    if metric in PHASES:
        return row.get(PHASES[metric])
    return row["elapsed_s"] if "elapsed_s" in row else row["finished_s"] - row["scheduled_s"]


def timed_points(rows, metric):
    """{point: rows that have the metric's time} of one variant, whose tables are `rows`."""
    table, where, _ = TIMED[metric]
    return grouped([row for row in ok(rows, table) if seconds(row, metric) is not None], *where)


def _start_logs(rows, metric):
    """The logarithm of the metric's quantile of each start's times."""
    q = TIMED[metric][2]
    return [float(np.log(np.quantile([seconds(row, metric) for row in start], q))) for start in by_start(rows)]


def start_spreads(variants):
    """{(gpu, model, metric): statistics.start_variance} over the variants that were started more than once."""
    logs = {}
    for (gpu, model, _), rows in variants.items():
        for metric in TIMED:
            points = [_start_logs(group, metric) for group in timed_points(rows, metric).values()]
            starts = max(map(len, points), default=0)
            whole = [point for point in points if len(point) == starts]
            if starts > 1:
                logs.setdefault((gpu, model, metric), []).append(np.transpose(whole))
    return {place: statistics.start_variance(found) for place, found in logs.items()}


def _batches(base, rows, chance, metrics):
    """What both ran, batch by batch."""
    found = []
    for metric in metrics:
        baseline = timed_points(base, metric)
        for point, mine in timed_points(rows, metric).items():
            if point in baseline:
                where = dict(zip(BATCH, point, strict=True))
                found.append({"metric": metric, **where, **gain_of(baseline[point], mine, metric, chance)})
    return found


def _ends(base, rows, batches):
    """Of `_batches`: throughput at the largest batch of each length, latency at the smallest and the largest."""
    found = []
    for (metric, *length), shared in grouped(batches, "metric", *BATCH[1:]).items():
        shared = sorted(shared, key=lambda speed: speed["batch_size"])
        same = [row for row in base[metric] + rows[metric] if [row.get(name) for name in BATCH[1:]] == length]
        asked = [row["batch_size"] for row in same if row.get("batch_size") is not None]
        ends = shared[-1:] if metric == "throughput" or len(shared) == 1 else [shared[0], shared[-1]]
        for speed in ends:
            caveat = None
            if speed is shared[-1] and speed["batch_size"] < max(asked):
                caveat = f"batch {speed['batch_size']} is the largest that both ran, of {max(asked)} asked"
            found.append(speed | {"caveat": caveat})
    return found


def _loads(base, rows, chance):
    """Median and p99 of the time from when a request was due until its last token, load by load."""
    baseline, found = grouped(ok(base, "serving"), *REQUESTS), []
    for load, mine in grouped(ok(rows, "serving"), *REQUESTS).items():
        if load not in baseline:
            continue
        level = load[1] if load[1] is not None else load[2]
        where = {"load": load[0], "level": level, "input_tokens": load[3], "output_tokens": load[4]}
        where |= {"workload": load[5], "burstiness": load[6]}
        fewest = min(len(mine), len(baseline[load]))
        for metric in ("e2e_p50", "e2e_p99"):
            few = metric == "e2e_p99" and fewest < P99_REQUESTS
            caveat = f"of {fewest} requests the p99 has no interval, which takes {P99_REQUESTS}" if few else None
            needs = f"{P99_REQUESTS} requests" if few else "more repeats"
            gain = gain_of(baseline[load], mine, metric, chance, needs)
            found.append({"metric": metric, **where, **gain, "caveat": caveat})
    return found


def gain_of(baseline, mine, metric, chance, needs="more repeats"):
    """How many times faster: the baseline's time over mine, so the roles of the ratio are swapped."""
    q, confidence, spread = TIMED[metric][2], chance.confidence, chance.spreads[metric]
    times = [[seconds(row, metric) for row in rows] for rows in (mine, baseline)]
    gain, low, high = statistics.ratio_of_quantiles_ci(*times, q, confidence)
    found = {"gain": gain, "low": low, "high": high, "within": [low, high], "starts": 1, "start_spread": None}
    if spread is not None and low is not None:
        starts = [_start_logs(rows, metric) for rows in (baseline, mine)]
        gain, start_low, start_high = statistics.gain_between_starts(*starts, spread, confidence)
        found |= {"gain": gain, "low": min(low, start_low, gain), "high": max(high, start_high, gain)}
        found |= {"starts": max(map(len, starts)), "start_spread": spread[0] ** 0.5}
    return found | {"words": ratio_words(gain, found["low"], found["high"], needs)}
