"""The report's first screen: the question, the answer, and one table of every scheme on every gpu.

Decides nothing: `context.summary` and `context.decisions` are decision.py's; here they become cells and a summary file.
"""

import polars as pl

from quantbench import display
from quantbench.decision import broken_promise, why_emulated
from quantbench.evidence import STATES
from quantbench.sections_quality import dummy_notice, tiny_notice
from quantbench.statistics import median_ci
from quantbench.twins import widest_gap
from quantbench.verdict import BETTER, WORSE

GAINS = {"throughput": "Throughput gain, largest batch", "latency": "Latency gain, smallest batch"}
TONES = (("better", "good"), ("worse", "bad"))


def first_screen(context):
    """(what the template's header and first table show, the summary file's content)."""
    study, summary = context.study, {(e["gpu"], e["model"], e["scheme"]): e for e in context.summary}
    deciding = [found for entry in context.summary for found in entry["accuracy"] if found["decides"]]
    tasks = list(dict.fromkeys(map(_task, deciding)))
    rows, groups = [], []
    for gpu in study["gpus"]:
        for model in context.models:
            decision = next((d for d in context.decisions if (d["gpu"], d["model"]) == (gpu, model)), None)
            entries = [(scheme, summary.get((gpu, model, scheme))) for scheme in study["schemes"]]
            groups.append(_group(context, gpu, model, entries, decision, tasks))
            rows += [_numbers(gpu, model, scheme, entry, decision) for scheme, entry in entries]
    gap = widest_gap(context.manifest, context.tables)
    answer = [
        {
            **{name: d[name] for name in ("sentence", "latency", "left_out")},
            "uncertain": [*_chance(d, gap), *d["uncertain"]],
        }
        for d in context.decisions
    ]
    if not answer:
        sentence = "Nothing can be recommended: this study measured neither speed nor accuracy of a model."
        answer = [{"sentence": sentence, "latency": None, "uncertain": [], "left_out": None}]
    screen = {
        "title": study["title"],
        "study": study["study"],
        "scope": _scope(context),
        "answer": answer,
        "notices": list(filter(None, [notice(context.manifest) for notice in (tiny_notice, dummy_notice)])),
        "table": {"caption": _caption(context, gap), "columns": _columns(context, tasks), "groups": groups},
    }
    decided = [
        {name: d[name] for name in ("gpu", "model", "scheme", "metric", "gain", "low", "high")}
        for d in context.decisions
    ]
    for short, said in zip(decided, answer, strict=False):
        short.update(said)
    return screen, {
        "study": study["study"],
        "title": study["title"],
        "baseline": context.baseline,
        "answer": decided,
        "schemes": rows,
    }


def _scope(context):
    runs = context.tables.get("runs")
    days = sorted({day[:10] for day in runs["started_at"].drop_nulls()}) if runs is not None else []
    when = [] if not days else [f"measured {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "")]
    parts = [display.listed(context.study["gpus"]), display.listed(context.models)]
    return " · ".join([*parts, _count(len(context.study["schemes"]), "scheme"), *when])


def _count(number, noun):
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _chance(decision, gap):
    """A sentence where the gain that decides is no larger than what the study shows of the chance between starts."""
    if gap is None or (gap["gpu"], gap["model"]) != (decision["gpu"], decision["model"]):
        return []
    gains = (decision["gain"], (decision["latency"] or {}).get("gain"))
    # As a reader sees them, in two digits: 1.11 is no more than 1.11.
    small = [gain for gain in gains if gain is not None and round(gain, 2) <= round(gap["ratio"], 2)]
    if not small:
        return []
    return [
        f"{display.listed(gap['schemes'])} ran the same kernels here, and yet one start of the engine was up to "
        f"{display.factor(gap['ratio'])} the speed of the other: a gain of {display.listed(map(display.factor, small))} may "
        "be such chance. Starting each scheme again would tell."
    ]


def _caption(context, gap):
    interval = f"{100 * context.confidence:g} % interval"
    return (
        f"Gains are times faster than {context.baseline}: above 1 is better. In brackets the {interval}; coloured "
        "where the difference is significant. Differences of accuracy are in percentage points, paired by question; equal "
        "means that the whole interval lies within the margin."
        f"{_starts(context)}{_twins(gap)}"
    )


def _starts(context):
    """What the intervals of speeds hold: the repeats of one start, or also what one start differs from the next by."""
    speeds = [speed for entry in context.summary for speed in entry["batches"] if speed["start_spread"] is not None]
    if speeds:
        most = max(speeds, key=lambda speed: speed["start_spread"])
        return (
            f" {context.baseline} was started {most['starts']} times: its speeds differ from start to start by up to "
            f"{100 * most['start_spread']:.1f} % ({most['metric']}, standard deviation), and the intervals allow for it."
        )
    repeats = context.study.get("repeats")
    if not repeats:
        return ""
    return (
        f" Speeds are medians of {repeats['least']} to {repeats['most']} repeats within one engine start: the same engine "
        "started again may differ by more than these intervals say."
    )


def _twins(gap):
    """What the study itself shows of the chance between engine starts."""
    if gap is None:
        return ""
    return (
        f" Here {display.listed(gap['schemes'])} have one format and ran the same kernels, and yet differ by up to "
        f"{display.factor(gap['ratio'])} ({gap['stage']}, batch {gap['batch_size']}): take gains of that size for chance."
    )


def _columns(context, tasks):
    columns = ["Scheme", *(GAINS[metric] for metric in _metrics(context))]
    for task in tasks:
        columns += [f"Accuracy, {_task_name(task, tasks)}", f"against {context.baseline}"]
    return [*columns, "Size", "Bits per weight", "Verdict"]


def _metrics(context):
    return [metric for metric in GAINS if context.study.get(metric)]


def _task(found):
    return found["task"], found["dataset"], found["shots"], found["chat_template"]


def _task_name(task, tasks):
    """The task's name, with what tells it from the study's others of that name."""
    name, dataset, shots, chat = task
    others = [other for other in tasks if other[0] == name and other != task]
    said = [dataset] if any(other[1] != dataset for other in others) else []
    said += [f"{shots} shots"] if any(other[2] != shots for other in others) else []
    said += ["chat template" if chat else "no chat template"] if any(other[3] != chat for other in others) else []
    return ", ".join([name, *map(str, said)])


# --- the table ------------------------------------------------------------------------------------------------------


def _group(context, gpu, model, entries, decision, tasks):
    speeds = {m: [s for _, e in entries if e and (s := _speed(e, m))] for m in GAINS}
    # The batch that most schemes were compared at heads the group; a row that differs says so.
    usual = {m: max(batches, key=batches.count) for m, s in speeds.items() if (batches := [x["batch_size"] for x in s])}
    said = [f"{metric} at batch {batch}" for metric, batch in usual.items()]
    first = next((s[0] for s in speeds.values() if s), None)
    if first:
        said.append(f"{first['input_tokens']} tokens in, {first['output_tokens']} out")
    device = _device(context, gpu)
    heading = " · ".join(filter(None, [f"{gpu}{f' ({device})' if device else ''}", model]))
    rows = [_row(context, gpu, model, scheme, entry, decision, tasks, usual, first) for scheme, entry in entries]
    return {"heading": heading, "said": ", ".join(said), "at": {"gpu": gpu, "model": model}, "rows": rows}


def _device(context, gpu):
    devices = context.ok("gpus")
    names = [] if devices is None else devices.filter(pl.col("gpu") == gpu)["device_name"].drop_nulls().to_list()
    return names[0] if names else None


def _row(context, gpu, model, scheme, entry, decision, tasks, usual, first):
    if entry is None or entry["status"] != "ok":
        said = _not_ok(context, gpu, model, scheme, entry)
        said["reason"], whole = display.in_short(said["reason"]), said["reason"]
        return {"scheme": scheme, "cells": None, "promise": None, "tone": "", "more": said["reason"] != whole, **said}
    if entry["is_baseline"]:
        cells = [_baseline_speed(context, entry, metric, usual.get(metric), first) for metric in _metrics(context)]
    else:
        cells = [_gain_cell(_speed(entry, metric), usual.get(metric)) for metric in _metrics(context)]
    for task in tasks:
        found = next((f for f in entry["accuracy"] if f["decides"] and _task(f) == task), None)
        cells += [_accuracy_cell(found), _difference_cell(found)]
    size = entry["size"] or {}
    bits, at = size.get("bits_per_weight"), {"table": "checkpoints"}
    cells.append(_cell(display.amount(size.get("bytes"), "B") if size else None, tone="even", at=at))
    cells.append(_cell(None if bits is None else f"{bits:.2f}", tone="even", at=at))
    tone, badge, reason = _verdict(entry, decision, context.baseline)
    said = {"tone": tone, "badge": badge, "reason": reason, "promise": broken_promise(entry)}
    return {"scheme": scheme, "kind": "ok", "cells": cells, **said}


def _not_ok(context, gpu, model, scheme, entry):
    """Kind, badge and reason of a row without numbers. What the plan left out never ran, and looks different."""
    where = {"gpu": gpu, "model": model, "scheme": scheme}
    planned = any(all(point[k] == v for k, v in where.items()) for point in context.manifest["points"])
    skips = [skip["reason"] for skip in context.manifest["skips"] if all(skip[k] == v for k, v in where.items())]
    if skips and not planned:
        return {"kind": "skipped", "badge": STATES["skipped"], "reason": skips[0]}
    if entry is None or entry["status"] == "not measured":
        reason = "the study asks for neither its speed nor its accuracy" if entry is None else entry["reason"]
        return {"kind": "missing", "badge": STATES["missing"], "reason": reason}
    return {"kind": entry["status"], "badge": STATES[entry["status"]], "reason": entry["reason"]}


def _verdict(entry, decision, baseline):
    """(tone, badge, reason): what decision.py concluded, in a word and in its own words."""
    failures = "; ".join(
        f"{f['table']} {STATES[f['status']]} at some points: {display.in_short(f['reason'])}" for f in entry["failures"]
    )
    compared = decision is not None and decision["metric"] is not None
    latency = decision["latency"] if compared and decision["latency"] and decision["latency"]["differs"] else None
    if compared and decision["scheme"] == entry["scheme"]:
        use = f" for {decision['metric']}" if latency and decision["metric"] == "throughput" else ""
        kept = "no other scheme gains there without a loss" if use else "no other scheme gains without a loss"
        kept = kept if entry["is_baseline"] else ""
        return "good", ("keep" if entry["is_baseline"] else "recommended") + use, kept or failures
    if latency and latency["scheme"] == entry["scheme"]:
        why = next((r["why"] for r in decision["rejected"] if r["scheme"] == entry["scheme"]), "")
        return "good", f"recommended at batch {latency['batch_size']}", why or failures
    if entry["is_baseline"]:
        return "even", "baseline", failures
    if why := why_emulated(entry):
        return "warn", "emulated", f"its quality is that of its numbers, computed without a kernel: {why}"
    if not compared:
        return "even", "no comparison", failures or f"there is no speed of it and of {baseline} to compare"
    why = next((r["why"] for r in decision["rejected"] if r["scheme"] == entry["scheme"]), "")
    reason = "; ".join(filter(None, (why, failures if failures not in why else "")))
    if entry["verdict"] == "unquantized":
        return "bad", "ran unquantized", reason
    deciding = [found.get("words", "") for found in entry["accuracy"] if found["decides"]]
    if any(words.startswith("worse") for words in deciding):
        return "bad", "loses accuracy", reason.removeprefix("accuracy ")
    speed = _speed(entry, decision["metric"], largest=True)
    words = speed["words"] if speed else ""
    if words.startswith("better"):
        return "warn", f"faster than {baseline}, not chosen", reason
    # Badge and reason are read in one go: "slower" "than bf16: ...".
    slower = "bad", "slower", reason.removeprefix("slower ")
    return slower if words.startswith("worse") else ("even", "no clear gain", reason)


def _speed(entry, metric, largest=False):
    """The first length's comparison: throughput at the largest batch, others at the smallest unless told otherwise."""
    found = [speed for speed in entry["speed"] if speed["metric"] == metric]
    if not found:
        return None
    lengths = [(speed["input_tokens"], speed["output_tokens"], speed.get("workload")) for speed in found]
    first = [speed for speed, length in zip(found, lengths, strict=True) if length == lengths[0]]
    return (max if largest or metric == "throughput" else min)(first, key=lambda speed: speed.get("batch_size", 0))


# --- cells ----------------------------------------------------------------------------------------------------------


def _cell(value, ci="", note="", tone="", at=None):
    """`at` says where the number's rows are: a table, and values of its columns besides gpu, model and scheme."""
    cell = {"value": value or display.MISSING, "ci": ci, "note": note, "tone": tone if value else "even"}
    return cell | ({"at": at} if value and at else {})


def _load(table, batch, lengths):
    names = ("input_tokens", "output_tokens")
    return {"table": table, "batch_size": batch, **{name: lengths[name] for name in names}}


def _tone(words):
    return next((tone for start, tone in TONES if words.startswith(start)), "even")


def _gain_cell(speed, usual):
    if speed is None:
        return _cell(None)
    note = "" if speed["words"].startswith(("better", "worse")) else speed["words"]
    if speed["batch_size"] != usual:
        note = f"at batch {speed['batch_size']}" + (f"; {note}" if note else "")
    ends = display.interval(speed["low"], speed["high"], lambda value: f"{value:.2f}")
    at = _load(speed["metric"], speed["batch_size"], speed)
    return _cell(display.factor(speed["gain"]), ends, note, _tone(speed["words"]), at)


def _baseline_speed(context, entry, metric, batch, first):
    """The baseline's own speed, which the gains multiply; at its own batch where nothing is compared with it."""
    frame = context.ok(metric)
    frame = frame.filter(gpu=entry["gpu"], model=entry["model"], scheme=entry["scheme"])
    if frame.is_empty():
        return _cell(None)
    lengths = [name for name in ("input_tokens", "output_tokens", "workload") if name in frame.columns]
    where = first or frame.row(0, named=True)
    frame = frame.filter(pl.col(name).eq_missing(pl.lit(where.get(name))) for name in lengths)
    if batch is None:
        batch = frame["batch_size"].max() if metric == "throughput" else frame["batch_size"].min()
    frame = frame.filter(batch_size=batch)
    if frame.is_empty():
        return _cell(None)
    median, *_ = median_ci(frame["elapsed_s"].to_list(), context.confidence)
    speed = display.seconds(median)
    if metric == "throughput":
        speed = display.rate(frame["total_output_tokens"][0] / median, "tokens/s")
    at = _load(metric, batch, frame.row(0, named=True))
    return _cell("1×", note=speed if first else f"{speed} at batch {batch}", tone="even", at=at)


def _accuracy_cell(found):
    if found is None:
        return _cell(None)
    ends = display.interval(found["low"], found["high"], lambda value: f"{100 * value:.1f}")
    noise = found.get("noise")
    note = f"started again: {display.points(noise['difference'])} points" if noise else ""
    return _cell(display.share(found["share"]), ends, note, tone="even", at=_questions(found))


def _questions(found):
    return {"table": "accuracy"} | {
        name: found[name] for name in ("task", "dataset", "shots", "chat_template", "filter")
    }


def _difference_cell(found):
    if found is None or "difference" not in found:
        return _cell(None)
    ends = display.interval(found["difference_low"], found["difference_high"], display.points)
    note = "" if found["kind"] in (BETTER, WORSE) else found["words"]
    return _cell(display.points(found["difference"]), ends, note, _tone(found["words"]), _questions(found))


# --- the summary file -----------------------------------------------------------------------------------------------

GAIN_NUMBERS = ("batch_size", "gain", "low", "high", "within", "starts", "start_spread", "words")
ACCURACY_NUMBERS = (
    *(
        "task",
        "dataset",
        "shots",
        "chat_template",
        "filter",
        "n",
        "share",
        "low",
        "high",
        "noise",
        "pairs",
        "lost",
        "won",
    ),
    *(
        "difference",
        "difference_low",
        "difference_high",
        "bootstrap",
        "recovery",
        "recovery_low",
        "recovery_high",
        "p",
        "p_holm",
    ),
    *("comparisons", "smallest_detectable", "power", "margin", "questions_needed", "kind", "words", "length"),
    "emulated",
)
PERPLEXITY_NUMBERS = ("dataset", "perplexity", "ratio", "low", "high", "noise", "margin", "kind", "words", "emulated")
FIDELITY_NUMBERS = (
    *("dataset", "documents", "tokens", "kl", "kl_low", "kl_high", "top1", "top1_low", "top1_high", "noise", "words"),
    "emulated",
)


def _numbers(gpu, model, scheme, entry, decision):
    """One scheme's row of the summary file: the first table's numbers, null where there is none."""
    row = {"gpu": gpu, "model": model, "scheme": scheme, "status": "not measured" if entry is None else entry["status"]}
    row |= {"reason": entry and entry["reason"], "chosen": bool(decision) and decision["scheme"] == scheme}
    row["computes"] = entry and entry["computes"]
    for metric in ("throughput", "latency"):
        speed = entry and _speed(entry, metric)
        row[f"{metric}_gain"] = speed and {name: speed[name] for name in GAIN_NUMBERS}
    found = [f for f in entry["accuracy"] if f["decides"]] if entry else []
    row["accuracy"] = [{name: f.get(name) for name in ACCURACY_NUMBERS} for f in found]
    for stage, names in (("perplexity", PERPLEXITY_NUMBERS), ("fidelity", FIDELITY_NUMBERS)):
        row[stage] = [{name: f.get(name) for name in names} for f in (entry[stage] if entry else [])]
    size = (entry and entry["size"]) or {}
    return row | {"bytes": size.get("bytes"), "bits_per_weight": size.get("bits_per_weight")}
