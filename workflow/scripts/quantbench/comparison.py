"""Every scheme beside the baseline, from the tables: speed, accuracy, perplexity, size, each with its uncertainty.

Tables are polars frames or lists of dicts with the columns of table_schema.py. decision.py decides.
"""

import math

from quantbench import statistics
from quantbench.kernel_verdict import FLOATS

# Below this many requests the p99 is, in effect, the slowest request.
P99_REQUESTS = 100

# Which reading of the answers decides, where a task has several: the stricter one, as GSM8K defines it.
DECIDING_FILTERS = ("strict-match",)

# Tables whose rows are measurements of a variant; kernels say what ran, not that anything was measured.
MEASURED = ("throughput", "latency", "serving", "accuracy", "perplexity")

NO_DIFFERENCE = "no significant difference"


def verdict_words(estimate, low, high, *, neutral, show, needs="more repeats"):
    """What an interval says, higher being better: "better by", "worse by", no significant difference, or cannot tell.

    `neutral` is 0 for a difference and 1 for a ratio; `show(estimate)` gives the words after "by". No interval (None):
    "cannot tell (needs ...)". An interval that touches neutral spans it.
    """
    if low is None or high is None:
        return f"cannot tell (needs {needs})"
    if low > neutral:
        return f"better by {show(estimate)}"
    if high < neutral:
        return f"worse by {show(estimate)}"
    return NO_DIFFERENCE


def accuracy_words(difference, low, high, p, needed, alpha=0.05):
    """The verdict on a paired accuracy difference: the adjusted p decides, the interval must agree with it.

    `needed` is how many questions would show a difference of this size; None where even that cannot be said. Where the
    interval leaves zero out and the adjusted p does not, the scheme alone would look different, among so many not.
    """
    if low is None:
        return f"cannot tell (needs {needed or 'more'} questions)"
    if p >= alpha and not low <= 0 <= high:
        return f"cannot tell (among so many schemes it may be chance; about {needed or 'more'} questions would tell)"
    if p >= alpha:
        return NO_DIFFERENCE
    return f"{'better' if difference > 0 else 'worse'} by {abs(100 * difference):.1f} points"


def percent(ratio):
    """A ratio to 1 as the change it is: 1.25 -> "25.0 %", 0.8 -> "20.0 %"."""
    return f"{abs(ratio - 1) * 100:.1f} %"


def summarize(tables, baseline, confidence=0.95, power=0.8):
    """[{"gpu", "model", "scheme", ...}] in the tables' order: each scheme on each gpu beside `baseline` there.

    is_baseline   bool
    status        ok when anything of it was measured, else the status of its points, or "not measured"; and `reason`
    failures      [{"table", "status", "reason"}]: points of an ok variant that were not
    verdict       as_promised, computes_other, unquantized (the worst of its layers), or None; `computes`, `expected`
                  of the layers that earned it; as promised: of those that the scheme quantizes
    speed         [{"metric", "batch_size" or ("load", "level"), "input_tokens", "output_tokens", "gain", "low", "high",
                  "words", "caveat"}]; gain is how many times faster than the baseline, metric throughput, latency,
                  e2e_p50 or e2e_p99
    batches       the same, without caveat, for throughput and latency at every batch that both ran
    accuracy      [{"task", "dataset", "shots", "filter", "decides", "n", "share", "low", "high"}]; where the baseline
                  was asked the same questions also {"pairs", "baseline_share", "difference", "difference_low",
                  "difference_high", "lost", "won", "p", "p_holm", "smallest_detectable", "power", "questions_needed",
                  "words"}
    perplexity    [{"dataset", "perplexity", "ratio", "low", "high", "words"}]
    size          {"bytes", "bits_per_weight", "ratio"} or None; ratio is bytes over the baseline's
    """
    data = {name: _dicts(table) for name, table in tables.items()}
    variants = {}
    for name in ("kernels", *MEASURED):
        for row in data.get(name, []):
            variant = variants.setdefault((row["gpu"], row["model"], row["scheme"]), {})
            variant.setdefault(name, []).append(row)
    sizes = {(row["model"], row["scheme"]): row for row in data.get("checkpoints", [])}
    summary = []
    for (gpu, model, scheme), rows in variants.items():
        base = variants.get((gpu, model, baseline), {})
        is_baseline = scheme == baseline
        entry = {"gpu": gpu, "model": model, "scheme": scheme, "is_baseline": is_baseline, "confidence": confidence}
        entry |= _status(rows) | _kernels(rows.get("kernels", []))
        entry["batches"] = [] if is_baseline else _batches(base, rows, confidence)
        entry["speed"] = _ends(base, rows, entry["batches"]) + ([] if is_baseline else _loads(base, rows, confidence))
        entry["accuracy"] = _accuracy(None if is_baseline else base, rows, confidence, power)
        entry["perplexity"] = _perplexity(base, rows, confidence, is_baseline)
        entry["size"] = _size(sizes.get((model, baseline)), sizes.get((model, scheme)))
        summary.append(entry)
    _adjust(summary, 1 - confidence, power)
    return summary


def _dicts(table):
    return table.to_dicts() if hasattr(table, "to_dicts") else list(table)


def _ok(rows, name):
    return [row for row in rows.get(name, []) if row["status"] == "ok"]


def _status(rows):
    measured = [(name, row) for name in MEASURED for row in rows.get(name, [])]
    failures = {}
    for name, row in measured:
        if row["status"] != "ok":
            failures[name, row["status"], row["reason"]] = {
                "table": name,
                "status": row["status"],
                "reason": row["reason"],
            }
    failures = list(failures.values())
    if any(row["status"] == "ok" for _, row in measured):
        return {"status": "ok", "reason": None, "failures": failures}
    if failures:
        return {"status": failures[0]["status"], "reason": failures[0]["reason"], "failures": []}
    return {"status": "not measured", "reason": "no speed or accuracy was asked for", "failures": []}


def _kernels(rows):
    """The worst verdict of any layer. As promised is told by the layers that the scheme quantizes, if there are any."""
    names = ("verdict", "computes", "expected")
    ran = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row["expected"] in FLOATS)
    for verdict in ("unquantized", "computes_other"):
        for row in ran:
            if row["verdict"] == verdict:
                return {name: row[name] for name in names}
    quantized = [row for row in ran if row["expected"] not in FLOATS] or ran
    if not quantized:
        return dict.fromkeys(names)
    # A layer whose kernel is not known leaves the whole scheme without a verdict.
    unknown = next((row for row in quantized if row["verdict"] is None), quantized[0])
    return {name: unknown[name] for name in names}


def _grouped(rows, *columns):
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return groups


# --- speed ----------------------------------------------------------------------------------------------------------


def _batches(base, rows, confidence):
    """Throughput and latency at every batch that both ran."""
    found = []
    for metric in ("throughput", "latency"):
        where = ("batch_size", "input_tokens", "output_tokens")
        baseline = _grouped(_ok(base, metric), *where)
        for point, mine in _grouped(_ok(rows, metric), *where).items():
            if point in baseline:
                times = [[row["elapsed_s"] for row in group] for group in (baseline[point], mine)]
                found.append(
                    {"metric": metric, **dict(zip(where, point, strict=True)), **_gain(*times, 0.5, confidence)}
                )
    return found


def _ends(base, rows, batches):
    """Of `_batches`: throughput at the largest batch of each length, latency at the smallest and the largest."""
    found = []
    for (metric, *_), shared in _grouped(batches, "metric", "input_tokens", "output_tokens").items():
        shared = sorted(shared, key=lambda speed: speed["batch_size"])
        asked = [row["batch_size"] for row in base[metric] + rows[metric] if row.get("batch_size") is not None]
        ends = shared[-1:] if metric == "throughput" or len(shared) == 1 else [shared[0], shared[-1]]
        for speed in ends:
            caveat = None
            if speed is shared[-1] and speed["batch_size"] < max(asked):
                caveat = f"batch {speed['batch_size']} is the largest that both ran, of {max(asked)} asked"
            found.append(speed | {"caveat": caveat})
    return found


def _loads(base, rows, confidence):
    """Median and p99 of the time from when a request was due until its last token, load by load."""
    columns = ("load", "rate_per_s", "concurrency", "input_tokens_asked", "output_tokens_asked")
    baseline, found = _grouped(_ok(base, "serving"), *columns), []
    for load, mine in _grouped(_ok(rows, "serving"), *columns).items():
        if load not in baseline:
            continue
        times = [[row["finished_s"] - row["scheduled_s"] for row in group] for group in (baseline[load], mine)]
        level = load[1] if load[1] is not None else load[2]
        where = {"load": load[0], "level": level, "input_tokens": load[3], "output_tokens": load[4]}
        fewest = min(map(len, times))
        for metric, q in (("e2e_p50", 0.5), ("e2e_p99", 0.99)):
            few = metric == "e2e_p99" and fewest < P99_REQUESTS
            caveat = f"of {fewest} requests the p99 is in effect the slowest" if few else None
            found.append({"metric": metric, **where, **_gain(*times, q, confidence), "caveat": caveat})
    return found


def _gain(baseline_s, mine_s, q, confidence):
    """How many times faster: the baseline's time over mine, so the roles of the ratio are swapped."""
    gain, low, high = statistics.ratio_of_quantiles_ci(mine_s, baseline_s, q, confidence)
    return {"gain": gain, "low": low, "high": high, "words": verdict_words(gain, low, high, neutral=1, show=percent)}


# --- quality and size -----------------------------------------------------------------------------------------------


def _accuracy(base, rows, confidence, power):
    columns = ("task", "dataset", "shots", "filter")
    groups = _grouped(_ok(rows, "accuracy"), *columns)
    baseline = _grouped(_ok(base, "accuracy"), *columns) if base else {}
    found = []
    for group, mine in groups.items():
        filters = sorted(other[3] for other in groups if other[:3] == group[:3])
        deciding = next((name for name in DECIDING_FILTERS if name in filters), filters[0])
        right = sum(row["correct"] for row in mine)
        low, high = statistics.wilson(right, len(mine), confidence)
        entry = {**dict(zip(columns, group, strict=True)), "decides": group[3] == deciding, "n": len(mine)}
        entry |= {"share": right / len(mine), "low": low, "high": high}
        if group in baseline:
            entry |= _paired_accuracy(baseline[group], mine, confidence, power)
        found.append(entry)
    return found


def _paired_accuracy(baseline, mine, confidence, power):
    theirs = {row["question"]: row["correct"] for row in baseline}
    pairs = [(theirs[row["question"]], row["correct"]) for row in mine if row["question"] in theirs]
    if not pairs:
        return {}
    before, after = zip(*pairs, strict=True)
    lost, won = statistics.discordant(before, after)
    share = (lost + won) / len(pairs)
    difference, low, high = statistics.paired_bootstrap_ci(before, after, confidence)
    entry = {"pairs": len(pairs), "difference": difference, "difference_low": low, "difference_high": high}
    entry |= {
        "lost": lost,
        "won": won,
        "p": statistics.mcnemar_exact(before, after),
        "baseline_share": sum(before) / len(pairs),
    }
    entry["power"] = power
    entry["smallest_detectable"] = statistics.smallest_detectable_difference(len(pairs), share, confidence, power)
    return entry


def _adjust(summary, alpha, power):
    """Holm across the schemes that one baseline was compared with, and the words that follow from it."""
    families = {}
    for entry in summary:
        for found in entry["accuracy"]:
            if "p" in found:
                family = (entry["gpu"], entry["model"], *(found[c] for c in ("task", "dataset", "shots", "filter")))
                families.setdefault(family, []).append(found)
    for family in families.values():
        for found, p in zip(family, statistics.holm([found["p"] for found in family]), strict=True):
            found["p_holm"] = p
            # The level that this comparison had to pass among the others: below it, its adjusted p is below alpha.
            level = alpha * found["p"] / p if p else alpha
            share = (found["lost"] + found["won"]) / found["pairs"]
            found["questions_needed"] = statistics.questions_needed(found["difference"], share, 1 - level, power)
            interval = (found["difference"], found["difference_low"], found["difference_high"])
            found["words"] = accuracy_words(*interval, p, found["questions_needed"], alpha)


def _perplexity(base, rows, confidence, is_baseline):
    baseline, found = _grouped(_ok(base, "perplexity"), "dataset"), []
    for (dataset,), mine in _grouped(_ok(rows, "perplexity"), "dataset").items():
        nats, tokens = (sum(row[name] for row in mine) for name in ("negative_log_likelihood", "tokens"))
        entry = {"dataset": dataset, "perplexity": math.exp(nats / tokens), "ratio": None, "low": None, "high": None}
        theirs = {row["document"]: row for row in baseline.get((dataset,), [])}
        pairs = [(theirs[row["document"]], row) for row in mine if row["document"] in theirs]
        if pairs and not is_baseline:
            nlls = ([pair[side]["negative_log_likelihood"] for pair in pairs] for side in (0, 1))
            ratio, low, high = statistics.perplexity_ratio_ci(*nlls, [row["tokens"] for _, row in pairs], confidence)
            entry |= {"ratio": ratio, "low": low, "high": high}
            # Lower is better: the words get the interval turned over.
            turned = (None, None) if low is None else (-high, -low)
            words = verdict_words(ratio, *turned, neutral=-1, show=percent, needs="more documents")
            entry["words"] = words
        found.append(entry)
    return found


def _size(baseline, mine):
    if mine is None or mine["bytes"] is None:
        return None
    ratio = mine["bytes"] / baseline["bytes"] if baseline and baseline["bytes"] else None
    return {"bytes": mine["bytes"], "bits_per_weight": mine["bits_per_weight"], "ratio": ratio}
