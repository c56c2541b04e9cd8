"""Which scheme to serve on each gpu, by a rule that is written down, with what is uncertain about it.

The rule: of the schemes that are significantly faster than the baseline, and whose accuracy is neither significantly
worse nor, as estimated, worse by more than the sample could have shown, the one with the largest throughput gain. Where
there is none, the baseline stays.
"""

from quantbench.comparison import accuracy_words, percent, summarize, verdict_words

__all__ = ["accuracy_words", "choose", "label", "percent", "summarize", "verdict_words"]

# What "faster" means, the first of these that was measured on any scheme of the gpu.
DECIDING_METRICS = ("throughput", "latency", "e2e_p50")
METRIC_WORDS = {"throughput": "throughput", "latency": "speed of a batch", "e2e_p50": "speed of the median request"}


def choose(summary):
    """One decision per gpu and model of `summarize`'s entries, in their order.

    {"gpu", "model", "scheme" (None: nothing can be said), "label", "is_baseline", "gain", "low", "high", "metric",
     "sentence", "uncertain": [sentences], "rejected": [{"scheme", "label", "why"}]}
    """
    groups = {}
    for entry in summary:
        groups.setdefault((entry["gpu"], entry["model"]), []).append(entry)
    return [_choose(gpu, model, entries) for (gpu, model), entries in groups.items()]


def label(entry):
    """The scheme's name, with what it computes where that is not its promise."""
    if entry["verdict"] == "unquantized":
        return f"{entry['scheme']} (ran unquantized)"
    if entry["verdict"] == "computes_other":
        return f"{entry['scheme']} (computes {entry['computes']}, not {entry['expected']})"
    return entry["scheme"]


def _choose(gpu, model, entries):
    baseline = next((entry for entry in entries if entry["is_baseline"]), None)
    schemes = [entry for entry in entries if not entry["is_baseline"]]
    decision = {"gpu": gpu, "model": model, "scheme": None, "label": None, "is_baseline": False, "gain": None}
    decision |= {"low": None, "high": None, "metric": None, "sentence": None, "uncertain": [], "rejected": []}
    if baseline is None or baseline["status"] != "ok":
        why = "the baseline was not measured" if baseline is None else _not_ok(baseline)
        decision["rejected"] = [_rejected(entry, _not_ok(entry)) for entry in schemes if entry["status"] != "ok"]
        return decision | {"sentence": f"On {gpu}, nothing can be said about {model}: {_baseline_why(baseline, why)}."}
    metric = next((m for m in DECIDING_METRICS if any(_speed(entry, m) for entry in schemes)), None)
    candidates = []
    for entry in schemes:
        why = _why_not(entry, metric, baseline)
        if why:
            decision["rejected"].append(_rejected(entry, why))
        else:
            candidates.append(entry)
    # Equal gains: the smaller checkpoint, then the study's order (sorting is stable).
    candidates.sort(
        key=lambda entry: (-_speed(entry, metric)["gain"], (entry["size"] or {}).get("bytes") or float("inf"))
    )
    if not candidates:
        return decision | _keep(gpu, model, baseline, schemes, metric)
    chosen, rest = candidates[0], candidates[1:]
    speed = _speed(chosen, metric)
    decision["rejected"] += [
        _rejected(e, f"slower: {_speed(e, metric)['gain']:.2f} times {baseline['scheme']}") for e in rest
    ]
    return decision | {
        "scheme": chosen["scheme"],
        "label": label(chosen),
        "gain": speed["gain"],
        "low": speed["low"],
        "high": speed["high"],
        "metric": metric,
        "sentence": _sentence(gpu, model, chosen, baseline, speed),
        "uncertain": _uncertain(chosen, speed, rest, metric),
    }


def _speed(entry, metric):
    """The comparison that decides: the first length of the study, and its largest batch or first load. None without."""
    found = [speed for speed in entry["speed"] if speed["metric"] == metric]
    lengths = [(speed["input_tokens"], speed["output_tokens"]) for speed in found]
    first = [speed for speed, length in zip(found, lengths, strict=True) if length == lengths[0]]
    return max(first, key=lambda speed: speed.get("batch_size", 0)) if first else None


def _why_not(entry, metric, baseline):
    """Why a scheme may not be chosen; None when it may."""
    if entry["status"] != "ok":
        return _not_ok(entry)
    if entry["verdict"] == "unquantized":
        return "its layers ran unquantized: its numbers are not the scheme's"
    speed = _speed(entry, metric)
    if speed is None:
        reasons = [f"{f['table']} {_words(f['status'])}: {f['reason']}" for f in entry["failures"]]
        return "its speed was not measured" + (f" ({'; '.join(reasons)})" if reasons else "")
    return _accuracy_why_not(entry, baseline) or _speed_why_not(speed, baseline["scheme"])


def _accuracy_why_not(entry, baseline):
    measured = {_question_set(found): found for found in entry["accuracy"] if found["decides"]}
    for asked in baseline["accuracy"]:
        if not asked["decides"]:
            continue
        found = measured.get(_question_set(asked))
        if found is None or "p_holm" not in found:
            return f"its accuracy on {asked['task']} was not measured"
        if found["words"].startswith("worse"):
            return f"accuracy on {asked['task']} {found['words']} ({_interval(found)})"
        if found["smallest_detectable"] is None:
            return f"{found['n']} questions of {asked['task']} are too few to show any loss"
        if -found["difference"] > found["smallest_detectable"]:
            points = _points(found["difference"])
            return f"accuracy on {asked['task']} {points} points, more than chance explains: {found['words']}"
    return None


def _speed_why_not(speed, baseline):
    if speed["low"] is None:
        return "one repeat: whether it is faster cannot be told"
    if speed["low"] > 1:
        return None
    slower = f"slower than {baseline}" if speed["high"] < 1 else f"not significantly faster than {baseline}"
    return f"{slower}: {speed['gain']:.2f} times ({speed['low']:.2f} to {speed['high']:.2f})"


def _question_set(found):
    return found["task"], found["dataset"], found["shots"]


def _rejected(entry, why):
    return {"scheme": entry["scheme"], "label": label(entry), "why": why}


def _words(status):
    return status.replace("_", " ")


def _not_ok(entry):
    return f"{_words(entry['status'])}: {entry['reason']}"


# --- sentences ------------------------------------------------------------------------------------------------------


def _baseline_why(baseline, why):
    return why if baseline is None else f"its baseline, {baseline['scheme']}, is {why}"


def _keep(gpu, model, baseline, schemes, metric):
    name = baseline["scheme"]
    if metric is None:
        none = "no other scheme was measured" if not schemes else f"no scheme's speed could be compared with {name}"
        sentence = f"On {gpu}, nothing can be recommended over {name} for {model}: {none}."
    else:
        sentence = f"On {gpu}, keep {model} in {name}: no scheme is significantly faster without a loss of accuracy."
    kept = {"scheme": name, "label": label(baseline), "is_baseline": True, "metric": metric, "sentence": sentence}
    if any(speed["low"] is None for entry in schemes for speed in [_speed(entry, metric)] if speed):
        kept["uncertain"] = ["Some speeds come from one repeat and have no interval."]
    return kept


def _sentence(gpu, model, chosen, baseline, speed):
    level = f"batch {speed['batch_size']}" if "batch_size" in speed else f"{speed['load']} {speed['level']:g}"
    faster = f"{speed['gain']:.2f} times the {METRIC_WORDS[speed['metric']]} of {baseline['scheme']}"
    interval = f"{100 * chosen['confidence']:g} % interval {speed['low']:.2f} to {speed['high']:.2f}"
    lengths = f"{speed['input_tokens']} tokens in and {speed['output_tokens']} out"
    parts = [f"On {gpu}, serve {model} as {label(chosen)}: {faster} ({interval}) at {level}, {lengths}"]
    for found in _deciding(chosen):
        shares = f"{100 * found['share']:.1f} % against {100 * found['baseline_share']:.1f} %"
        difference = f"{_points(found['difference'])} points, {_interval(found)}"
        parts.append(f"{found['task']} accuracy {shares} ({difference}): {found['words']}")
    if chosen["size"] and chosen["size"]["ratio"]:
        parts.append(f"weights {chosen['size']['ratio']:.2f} times the size")
    return "; ".join(parts) + "."


def _uncertain(chosen, speed, rest, metric):
    sentences = []
    if chosen["verdict"] == "computes_other":
        kernel = f"its kernels compute {chosen['computes']} where the scheme promises {chosen['expected']}"
        sentences.append(f"The numbers are those of another computation: {kernel}.")
    if speed["caveat"]:
        sentences.append(f"On speed: {speed['caveat']}.")
    tied = [entry["scheme"] for entry in rest if _speed(entry, metric)["high"] >= speed["low"]]
    if tied:
        sentences.append(f"In speed it is not distinguishable from {', '.join(tied)}: their intervals overlap.")
    if not _deciding(chosen):
        sentences.append("Accuracy was not measured: the choice rests on speed alone.")
    for found in _deciding(chosen):
        points = f"{100 * found['smallest_detectable']:.1f} points"
        questions = f"{found['pairs']} questions of {found['task']}"
        chance = f"with a chance of {100 * found['power']:g} %"
        sentences.append(f"{questions} show a loss of {points} {chance}; a smaller one can hide.")
        if found["words"].startswith("cannot tell"):
            sentences.append(f"On {found['task']} accuracy: {found['words']}.")
    for found in chosen["perplexity"]:
        if found.get("words", "").startswith("worse"):
            times = f"{found['low']:.3f} to {found['high']:.3f} times"
            sentences.append(f"Perplexity on {found['dataset']} is {found['words']} ({times}).")
    sentences += [f"{f['table']}: {_words(f['status'])} at some points ({f['reason']})." for f in chosen["failures"]]
    return sentences


def _deciding(entry):
    return [found for found in entry["accuracy"] if found["decides"] and "difference" in found]


def _points(difference):
    return f"{100 * difference:+.1f}"


def _interval(found):
    if found["difference_low"] is None:
        return "no interval"
    return f"{_points(found['difference_low'])} to {_points(found['difference_high'])}"
