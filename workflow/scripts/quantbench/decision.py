"""Which scheme to serve on each gpu, by a rule that is written down, with what is uncertain about it.

The rule: of the schemes that are significantly faster than the baseline, and whose accuracy is either equal within the
margin or neither significantly worse nor, as estimated, worse by more than the sample could have shown, the one with the
largest gain. Where there is none, the baseline stays. It is applied twice: to throughput at the largest batch, and to
latency batch by batch from the smallest, for the first at which another scheme is the choice.
"""

from quantbench import display
from quantbench.comparison import summarize
from quantbench.verdict import BETTER, EQUAL, UNCLEAR, WORSE

__all__ = ["choose", "label", "summarize"]

# What "faster" means, the first of these that was measured on any scheme of the gpu.
DECIDING_METRICS = ("throughput", "latency", "e2e_p50")
METRIC_WORDS = {"throughput": "throughput", "latency": "speed of a batch", "e2e_p50": "speed of the median request"}


def choose(summary):
    """One decision per gpu and model of `summarize`'s entries, in their order.

    gpu, model, scheme (None: nothing can be said), label, is_baseline
    gain, low, high, metric   over the baseline, where another scheme was chosen
    sentence                  the choice and its reasons
    latency                   None without latencies, or where the baseline is the choice for both; else
                              {"scheme", "label", "differs", "batch_size", "gain", "low", "high", "stops_at": the batch
                              from which on it is not significantly faster, None if it still is at the largest,
                              "sentence"}
    uncertain                 [sentences]: what could not have been seen
    left_out                  a sentence on the schemes without numbers, or None
    rejected                  [{"scheme", "label", "why"}]
    """
    groups = {}
    for entry in summary:
        groups.setdefault((entry["gpu"], entry["model"]), []).append(entry)
    return [_choose(gpu, model, entries) for (gpu, model), entries in groups.items()]


def broken_promise(entry):
    """What the scheme did instead of its promise, in words; None where it kept it or nothing is known."""
    if entry["verdict"] == "unquantized":
        return "ran unquantized"
    if entry["verdict"] == "computes_other":
        return f"computes {entry['computes']}, not {entry['expected']}"
    return "emulated" if entry["verdict"] == "emulated" else None


def why_emulated(entry):
    """Why a variant was emulated, in short; None for one that was not."""
    if entry["verdict"] != "emulated":
        return None
    return display.in_short(entry["refusal"] or "the device has no kernel for it")


def label(entry):
    """The scheme's name, with what it computes where that is not its promise."""
    broken = broken_promise(entry)
    return f"{entry['scheme']} ({broken})" if broken else entry["scheme"]


def _choose(gpu, model, entries):
    baseline = next((entry for entry in entries if entry["is_baseline"]), None)
    schemes = [entry for entry in entries if not entry["is_baseline"]]
    decision = {"gpu": gpu, "model": model, "scheme": None, "label": None, "is_baseline": False, "gain": None}
    decision |= {"low": None, "high": None, "metric": None, "sentence": None, "latency": None, "uncertain": []}
    decision |= {"left_out": _left_out(schemes), "rejected": []}
    if baseline is None or baseline["status"] != "ok":
        why = "the baseline was not measured" if baseline is None else _not_ok(baseline)
        decision["rejected"] = [_rejected(entry, _not_ok(entry)) for entry in schemes if entry["status"] != "ok"]
        return decision | {"sentence": f"On {gpu}, nothing can be said about {model}: {_baseline_why(baseline, why)}."}
    metric = next((m for m in DECIDING_METRICS if any(_speed(entry, m) for entry in schemes)), None)
    compared = [(entry, _speed(entry, metric)) for entry in schemes]
    decision["rejected"] = [_rejected(e, why) for e, speed in compared if (why := _why_not(e, speed, baseline))]
    candidates = _candidates(compared, baseline)
    chosen, speed = candidates[0] if candidates else (baseline, None)
    latency = _latency(chosen, schemes, baseline)
    decision["latency"] = latency
    if chosen is baseline:
        return decision | _keep(gpu, model, baseline, compared, metric, latency)
    name = baseline["scheme"]
    decision["rejected"] += [
        _rejected(e, f"slower than {chosen['scheme']}, the choice: {display.times(s['gain'])} the speed of {name}")
        for e, s in candidates[1:]
    ]
    return decision | {
        "scheme": chosen["scheme"],
        "label": label(chosen),
        "gain": speed["gain"],
        "low": speed["low"],
        "high": speed["high"],
        "metric": metric,
        "sentence": _sentence(gpu, model, chosen, baseline, speed),
        "uncertain": _uncertain(chosen, speed, candidates[1:]),
    }


def _candidates(compared, baseline):
    """[(entry, speed)] that may be chosen, best first. Equal gains: the smaller checkpoint, then the given order."""
    allowed = [(entry, speed) for entry, speed in compared if not _why_not(entry, speed, baseline)]
    return sorted(allowed, key=lambda pair: (-pair[1]["gain"], (pair[0]["size"] or {}).get("bytes") or float("inf")))


def _latency(chosen, schemes, baseline):
    """The choice at the smallest batch at which it is not `chosen`, else at the smallest of all. See `choose`."""
    found = [speed for entry in schemes for speed in entry["batches"] if speed["metric"] == "latency"]
    if not found:
        return None
    length = _length(found[0])
    curves = [(entry, [speed for speed in entry["batches"] if _length(speed) == length]) for entry in schemes]
    choices = []
    for batch in sorted({speed["batch_size"] for speed in found if _length(speed) == length}):
        at = {"metric": "latency", "batch_size": batch}
        compared = [(e, next((s for s in curve if at.items() <= s.items()), None)) for e, curve in curves]
        candidates = _candidates(compared, baseline)
        mine = next((speed for entry, speed in candidates if entry is chosen), None)
        best, speed = candidates[0] if candidates else (baseline, None)
        # One that the measurements cannot tell from the choice for throughput is no reason to serve two schemes.
        if mine and mine["high"] >= speed["low"]:
            best, speed = chosen, mine
        choices.append((batch, best, speed, next((s for e, s in compared if e is chosen), None)))
    batch, best, speed, beaten = next((c for c in choices if c[1] is not chosen), choices[0])
    if best is chosen and chosen is baseline:
        return None
    decided = {"scheme": best["scheme"], "label": label(best), "differs": best is not chosen, "batch_size": batch}
    decided |= {"gain": None, "low": None, "high": None, "stops_at": None}
    if best is baseline:
        return decided | {"sentence": _baseline_stays(batch, chosen, beaten, baseline)}
    curve = next(curve for entry, curve in curves if entry is best)
    later = sorted((s for s in curve if s["batch_size"] > batch), key=lambda speed: speed["batch_size"])
    stops = _stops(later)
    decided |= {name: speed[name] for name in ("gain", "low", "high")} | {"stops_at": stops and stops["batch_size"]}
    return decided | {"sentence": _latency_sentence(decided["differs"], best, speed, stops, later, baseline)}


def _length(speed):
    return speed["input_tokens"], speed["output_tokens"], speed.get("workload")


def _stops(later):
    """The first of the batches from which on none is significantly faster; None if the last one still is."""
    stops = None
    for speed in reversed(later):
        if speed["low"] is not None and speed["low"] > 1:
            break
        stops = speed
    return stops


def _speed(entry, metric):
    """The comparison that decides: the first length of the study, and its largest batch or first load. None without."""
    found = [speed for speed in entry["speed"] if speed["metric"] == metric]
    first = [speed for speed in found if _length(speed) == _length(found[0])]
    return max(first, key=lambda speed: speed.get("batch_size", 0)) if first else None


def _why_not(entry, speed, baseline):
    """Why a scheme may not be chosen on the strength of `speed`; None when it may."""
    if entry["status"] != "ok":
        return _not_ok(entry)
    if entry["verdict"] == "unquantized":
        return "its layers ran unquantized: its numbers are not the scheme's"
    if why := why_emulated(entry):
        return f"emulated, so without a speed: {why}"
    if speed is None:
        reasons = [f"{f['table']} {_words(f['status'])}: {display.in_short(f['reason'])}" for f in entry["failures"]]
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
        if found["kind"] == WORSE:
            return f"accuracy on {asked['task']} {found['words']}"
        if found["smallest_detectable"] is None:
            return f"{found['n']} questions of {asked['task']} are too few to show any loss"
        if found["kind"] != EQUAL and -found["difference"] > found["smallest_detectable"]:
            points = display.points(found["difference"])
            unseen = f"more than the {100 * found['smallest_detectable']:.1f} that this many questions show"
            return f"accuracy on {asked['task']} {points} points, {unseen}: {found['words']}"
    return None


def _speed_why_not(speed, baseline):
    if speed["low"] is None:
        return "one repeat: whether it is faster cannot be told"
    if speed["low"] > 1:
        return None
    slower = f"slower than {baseline}" if speed["high"] < 1 else f"not significantly faster than {baseline}"
    return f"{slower}: {display.times(speed['gain'])} ({speed['low']:.2f} to {speed['high']:.2f}) at {_level(speed)}"


def _question_set(found):
    return found["task"], found["dataset"], found["shots"], found["chat_template"]


def _rejected(entry, why):
    return {"scheme": entry["scheme"], "label": label(entry), "why": why}


def _words(status):
    return status.replace("_", " ")


def _not_ok(entry):
    return f"{_words(entry['status'])}: {display.in_short(entry['reason'])}"


# --- sentences ------------------------------------------------------------------------------------------------------


def _baseline_why(baseline, why):
    return why if baseline is None else f"its baseline, {baseline['scheme']}, is {why}"


def _keep(gpu, model, baseline, compared, metric, latency):
    name = baseline["scheme"]
    speeds = [speed for _, speed in compared if speed]
    if metric is None:
        none = "no other scheme was measured" if not compared else f"no scheme's speed could be compared with {name}"
        sentence = f"On {gpu}, nothing can be recommended over {name} for {model}: {none}."
    elif latency:
        at = _level(max(speeds, key=lambda speed: speed["batch_size"]))
        use = "for throughput" if metric == "throughput" else f"at {at}"
        none = f"no scheme is significantly faster at {at} without a loss of accuracy"
        sentence = f"On {gpu}, keep {model} in {name} {use}: {none}."
    else:
        sentence = f"On {gpu}, keep {model} in {name}: no scheme is significantly faster without a loss of accuracy."
    kept = {"scheme": name, "label": label(baseline), "is_baseline": True, "metric": metric, "sentence": sentence}
    kept["uncertain"] = []
    if any(speed["low"] is None for speed in speeds):
        kept["uncertain"].append("Some speeds come from one repeat and have no interval.")
    if latency:
        chosen = next(entry for entry, _ in compared if entry["scheme"] == latency["scheme"])
        kept["uncertain"] += _other_computation(chosen) + _unseen(chosen)
    elif speeds:
        kept["uncertain"] += _unseen_by_all([entry for entry, speed in compared if speed])
    return kept


def _level(speed):
    if "batch_size" in speed:
        return f"batch {speed['batch_size']}"
    return "all requests at once" if speed["level"] is None else f"{speed['load']} {speed['level']:g}"


def _asked(speed):
    if speed.get("workload"):
        return f"requests of workload {speed['workload']}"
    return f"{speed['input_tokens']} tokens in and {speed['output_tokens']} out"


def _gain_words(speed, confidence):
    return f"{100 * confidence:g} % interval {speed['low']:.2f} to {speed['high']:.2f}"


def _accuracy_clauses(entry):
    """In words and numbers: "equal within 1 point at 95 % on gsm8k accuracy (−0.1 points, −0.6 to +0.4)"."""
    for found in _deciding(entry):
        points = f"({display.points(found['difference'])} points, {_interval(found)})"
        if found["kind"] == UNCLEAR:
            yield f"no loss of {found['task']} accuracy shown {points}"
        elif found["kind"] == BETTER:
            yield f"{found['words']} on {found['task']} accuracy"
        else:
            yield f"{found['words']} on {found['task']} accuracy {points}"


def _size_clause(entry):
    return [f"weights {display.times(entry['size']['ratio'])} the size"] if (entry["size"] or {}).get("ratio") else []


def _sentence(gpu, model, chosen, baseline, speed):
    faster = f"{display.times(speed['gain'])} the {METRIC_WORDS[speed['metric']]} of {baseline['scheme']}"
    at = f"at {_level(speed)}, {_asked(speed)}"
    interval = _gain_words(speed, chosen["confidence"])
    parts = [f"On {gpu}, serve {model} as {label(chosen)}: {faster} ({interval}) {at}"]
    return "; ".join([*parts, *_accuracy_clauses(chosen), *_size_clause(chosen)]) + "."


def _latency_sentence(differs, best, speed, stops, later, baseline):
    faster = f"{display.times(speed['gain'])} as fast as {baseline['scheme']}"
    if differs:
        parts = [f"For latency at batch {speed['batch_size']}, serve {label(best)}: {faster}"]
    else:
        parts = [f"At batch {speed['batch_size']} it is also the choice for latency: {faster}"]
    parts[0] += f" ({_gain_words(speed, best['confidence'])})"
    if differs:
        parts += [*_accuracy_clauses(best), *_size_clause(best)]
    if stops:
        interval = "" if stops["low"] is None else f", {stops['low']:.2f} to {stops['high']:.2f}"
        there = f"({display.times(stops['gain'])} there{interval})"
        parts.append(f"from batch {stops['batch_size']} on it is not significantly faster {there}")
    elif later and differs:
        parts.append(f"it still pays at batch {later[-1]['batch_size']}, the largest measured")
    return "; ".join(parts) + "."


def _baseline_stays(batch, chosen, speed, baseline):
    name = chosen["scheme"]
    said = f"For latency at batch {batch}, {baseline['scheme']} stays the choice"
    if speed is None:
        return f"{said}: {name} was not measured there."
    gain = f"{display.times(speed['gain'])} as fast"
    interval = "" if speed["low"] is None else f" ({_gain_words(speed, chosen['confidence'])})"
    return (
        f"{said}: {name} is {gain}{interval}, and no other scheme is significantly faster without a loss of accuracy."
    )


def _left_out(schemes):
    """Which schemes have no numbers, in a word each: one clause per status and reason in short."""
    reasons = {}
    for entry in schemes:
        if entry["status"] != "ok":
            reasons.setdefault((entry["status"], display.in_short(entry["reason"])), []).append(entry["scheme"])
        elif why := why_emulated(entry):
            reasons.setdefault(("emulated, without a speed", why), []).append(entry["scheme"])
    said = [f"{display.listed(names)} {_words(status)} ({reason})" for (status, reason), names in reasons.items()]
    return f"{'; '.join(said)}." if said else None


def _uncertain(chosen, speed, rest):
    sentences = _other_computation(chosen)
    if speed["caveat"]:
        sentences.append(f"On speed: {speed['caveat']}.")
    tied = [entry["scheme"] for entry, other in rest if other["high"] >= speed["low"]]
    if tied:
        sentences.append(f"In speed it is not distinguishable from {', '.join(tied)}: their intervals overlap.")
    return sentences + _unseen(chosen)


def _other_computation(chosen):
    if chosen["verdict"] != "computes_other":
        return []
    kernel = f"its kernels compute {chosen['computes']} where the scheme promises {chosen['expected']}"
    return [f"The numbers of {chosen['scheme']} are those of another computation: {kernel}."]


def _unseen(chosen):
    sentences = []
    if not _deciding(chosen):
        sentences.append("Accuracy was not measured: the choice rests on speed alone.")
    for found in _deciding(chosen):
        sentences.append(_reach(found, [found["smallest_detectable"]]))
        if found["kind"] == UNCLEAR:
            margin = f"{100 * found['margin']:g} point{'' if found['margin'] == 0.01 else 's'}"
            sentences.append(f"Whether its {found['task']} accuracy is equal within {margin}: {found['words']}.")
    for found in chosen["perplexity"]:
        if found.get("kind") == WORSE:
            sentences.append(f"The perplexity of {chosen['scheme']} on {found['dataset']} is {found['words']}.")
    for failed in chosen["failures"]:
        reason = display.in_short(failed["reason"])
        sentences.append(f"{failed['table']}: {_words(failed['status'])} at some points ({reason}).")
    return sentences


def _unseen_by_all(entries):
    """How small a loss the questions could show, over all schemes compared: they differ in how many answers changed."""
    tasks = {}
    for entry in entries:
        for found in _deciding(entry):
            if found["smallest_detectable"] is not None:
                tasks.setdefault(_question_set(found), []).append(found)
    return [_reach(found[0], [each["smallest_detectable"] for each in found]) for found in tasks.values()]


def _reach(found, detectable):
    """What the questions could have shown: the smallest loss, or from where to where where schemes differ."""
    ends = list(dict.fromkeys(f"{100 * end:.1f}" for end in (min(detectable), max(detectable))))
    chance = f"with a chance of {100 * found['power']:g} %"
    questions = f"{found['pairs']} questions of {found['task']}"
    return f"{questions} show a loss of {' to '.join(ends)} points {chance}; a smaller one can hide."


def _deciding(entry):
    return [found for found in entry["accuracy"] if found["decides"] and "difference" in found]


def _interval(found):
    if found["difference_low"] is None:
        return "no interval"
    return f"{display.points(found['difference_low'])} to {display.points(found['difference_high'])}"
