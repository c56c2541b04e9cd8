"""The report's sections on serving: times under load, goodput, and the highest rate within the service-level objective."""

import json

from quantbench import charts, display, goodput
from quantbench.comparison import P99_REQUESTS
from quantbench.load import LAG_NOTED, TICK_S, client_lag
from quantbench.rate_search import bracket
from quantbench.sections import panel, parts, point, rescaled
from quantbench.sections_speed import heading
from quantbench.statistics import quantile_ci
from quantbench.token_gaps import gap_quantiles

QUANTILES = (0.5, 0.9, 0.99)
# Times of a load, in the order of the tables; which quantiles of them have a chart.
TTFT, ITL, TPOT, E2E, LAG = (
    "time to first token",
    "between tokens (ITL)",
    "per further token (TPOT)",
    "whole answer",
    "the client's own lag",
)
DRAWN = ((TTFT, 0.5), (TTFT, 0.99), (ITL, 0.5), (ITL, 0.99), (E2E, 0.5), (E2E, 0.99))
QUANTILE_NAMES = {0.5: "median", 0.9: "p90", 0.99: "p99"}
# Column of a load's level, the axis it is drawn on, and how it is said.
LOADS = {
    "rate": ("rate_per_s", "requests per second", "At {x:g} requests per second"),
    "concurrency": ("concurrency", "requests at once", "With {x:g} requests at once"),
    "all_at_once": ("requests", "requests, all at once", "When {x:g} requests come all at once"),
}
AT_ONCE = (
    "All requests are due at the same moment (a request rate of “inf”): the time to the first token is for the most part "
    "time spent in line. It tells how fast the line is worked off, not how a server answers at any rate."
)


def serving(context):
    intro = (
        "A server under load. Times count from the moment a request was due, so waiting before the server counts, and "
        "so does what the client itself was late. {ci} % intervals as bars; they take requests as independent, which in "
        "one line they are not quite. Lower is better."
    )
    groups, slo = [], (context.study.get("serving") or {}).get("slo")
    keys = ["gpu", "model", "input_tokens_asked", "output_tokens_asked", "workload", "load", "burstiness"]
    for (gpu, model, inputs, outputs, workload, load, burstiness), frame in context.grouped("serving", keys):
        how = LOADS[load][1] + (f", {_arrivals(burstiness)}" if burstiness not in (None, 1) else "")
        kicker = f"{gpu} · {model} · {_asked(inputs, outputs, workload)} · by {how}"
        asked = {"input_tokens": inputs, "output_tokens": outputs, "workload": workload, "burstiness": burstiness}
        at = {
            "table": "serving",
            "gpu": gpu,
            "model": model,
            "load": load,
            "burstiness": burstiness,
            "workload": workload,
        }
        at |= {"input_tokens_asked": inputs, "output_tokens_asked": outputs}
        group = _load_group(context, gpu, model, load, asked, frame, slo)
        groups.append({"kicker": kicker, "at": at, **({"x": LOADS[load][0]} if load != "all_at_once" else {}), **group})
    return context.section("serving", "Serving", intro, groups)


def _asked(inputs, outputs, workload):
    return f"workload {workload}" if workload else f"{inputs} tokens in, {outputs} out"


def _arrivals(burstiness):
    return f"{'in bursts' if burstiness < 1 else 'evenly'} (gamma arrivals of shape {burstiness:g})"


def load_times(rows, confidence):
    """{time: [(seconds, low, high) of each of QUANTILES]} of the requests of a load; a time that nothing has is absent."""
    samples = {
        TTFT: [goodput.ttft_s(row) for row in rows],
        TPOT: [seconds for row in rows if (seconds := goodput.tpot_s(row)) is not None],
        E2E: [goodput.e2e_s(row) for row in rows],
        LAG: [row["sent_s"] - row["scheduled_s"] for row in rows],
    }
    found = {name: [quantile_ci(s, q, confidence) for q in QUANTILES] for name, s in samples.items() if s}
    gaps = gap_quantiles([row.get("token_gaps") for row in rows], QUANTILES, confidence)
    found |= {ITL: gaps} if gaps else {}
    return {name: found[name] for name in (TTFT, ITL, TPOT, E2E, LAG) if name in found}


def _load_group(context, gpu, model, load, asked, frame, slo):
    column, x_title, where = LOADS[load]
    # A load is one server's; the summary's gains read the other starts themselves.
    frame = frame.filter(start=1)
    loads = {
        (scheme, len(part) if load == "all_at_once" else x): part.to_dicts()
        for (scheme, x), part in parts(frame, ["scheme", "load" if load == "all_at_once" else column])
    }
    times = {place: load_times(rows, context.confidence) for place, rows in loads.items()}
    panels = []
    for name, q in DRAWN:
        rows = context.in_order(
            [
                point(scheme, x, found[name][QUANTILES.index(q)], display.seconds)
                for (scheme, x), found in times.items()
                if name in found
            ]
        )
        if rows:
            unit, size = display.time_unit(max(row["value"] for row in rows))
            axis = {"x_title": x_title, "y_title": f"{unit}, log scale", "log": True}
            chart = charts.lines(rescaled(rows, size), context.look, **axis)
            panels.append(panel(f"{name[0].upper()}{name[1:]}, {QUANTILE_NAMES[q]}", chart, rows, x_title))
    most = max(x for _, x in loads)
    gains = _gains(context, gpu, model, load, asked, most)
    said = heading(
        context, gpu, model, gains, most, where.format(x=most), "gives the median answer {gain} as fast as {base}"
    )
    numbers = [
        [scheme, f"{x:g}", name, *(display.with_interval(estimate, display.seconds) for estimate in estimates)]
        for (scheme, x), found in times.items()
        for name, estimates in found.items()
    ]
    # All at once there is one load; else its level tells it apart.
    told = {"at": {0: "scheme"} if load == "all_at_once" else {0: "scheme", 1: column}}
    group = {
        "heading": said,
        "panels": panels,
        "notes": _notes(load, loads),
        "numbers": {"columns": ["scheme", x_title, "time", *QUANTILE_NAMES.values()], "rows": numbers} | told,
    }
    if slo:
        group["panels"] = [*panels, _goodput_panel(context, loads, slo, x_title)]
        group["more"] = [_goodput_table(context, loads, slo, x_title)]
    return group


def _notes(load, loads):
    notes, fewest = [AT_ONCE] if load == "all_at_once" else [], min(map(len, loads.values()))
    if fewest < P99_REQUESTS:
        notes.append(
            f"The p99 of {fewest} requests is little more than the slowest one, and has no interval: that takes "
            f"{P99_REQUESTS}. That of the times between tokens has, since each answer has many."
        )
    lags = {place: client_lag(rows) for place, rows in loads.items()}
    noted = {place: share for place, (lag_s, share) in lags.items() if lag_s > TICK_S and share > LAG_NOTED}
    if noted:
        (scheme, x), share = max(noted.items(), key=lambda item: item[1])
        notes.append(
            f"The client itself was late: for {scheme} at {x:g} by {display.share(share, 0)} of the time to the first token, "
            "on average, which is in the times above."
        )
    return notes


def _gains(context, gpu, model, load, asked, most):
    """Rows of the gain in the median answer at the highest level of a load: the summary's."""
    found = []
    for entry in context.summary:
        if (entry["gpu"], entry["model"]) != (gpu, model):
            continue
        for speed in entry["speed"]:
            same = all(speed.get(name) == value for name, value in asked.items())
            at = most if load == "all_at_once" else speed.get("level")
            if same and (speed["metric"], speed.get("load"), at) == ("e2e_p50", load, most):
                gain = speed["gain"], speed["low"], speed["high"]
                found.append(point(entry["scheme"], most, gain, display.factor))
    return found


# --- goodput --------------------------------------------------------------------------------------------------------


def _per_second(value):
    return display.rate(value, "requests/s")


def _goodput_panel(context, loads, slo, x_title):
    rows = []
    for (scheme, x), requests in loads.items():
        found = goodput.goodput(requests, slo, context.confidence)
        # Requests within the SLO per second: its interval is that of their share.
        each = found["requests"] / goodput.duration_s(requests)
        estimate = found["requests_per_s"], found["low"] * each, found["high"] * each
        rows.append(point(scheme, x, estimate, _per_second))
    rows = context.in_order(rows)
    chart = charts.lines(rows, context.look, x_title=x_title, y_title="requests within the SLO per second")
    return panel("Goodput", chart, rows, x_title)


def _goodput_table(context, loads, slo, x_title):
    rows = []
    for (scheme, x), requests in loads.items():
        found = goodput.goodput(requests, slo, context.confidence)
        share = display.with_interval((found["share"], found["low"], found["high"]), display.share)
        met = "yes" if found["met"] else "no"
        rows.append([scheme, f"{x:g}", share, met, _per_second(found["requests_per_s"])])
    return {
        "title": "Goodput under the SLO",
        "note": f"The SLO: {goodput.words(slo, display.seconds)}, counted from when they were due.",
        "columns": ["scheme", x_title, "requests within", "SLO met", "goodput"],
        "rows": rows,
    }


# --- the highest rate ---------------------------------------------------------------------------------------------------


def search(context):
    slo = context.study["serving"]["slo"]
    intro = (
        f"The highest request rate at which {goodput.words(slo, display.seconds)}, found by bisection: each point is a load "
        "of its own, its bar the {ci} % interval of the share. The truth lies between the highest rate that met the SLO and "
        "the lowest that did not. Higher is better."
    )
    groups, keys = [], ["gpu", "model", "input_tokens_asked", "output_tokens_asked", "workload"]
    for (gpu, model, inputs, outputs, workload), frame in context.grouped("search", keys):
        found = {scheme: part.to_dicts() for (scheme,), part in parts(frame.filter(start=1), ["scheme"])}
        kicker = f"{gpu} · {model} · {_asked(inputs, outputs, workload)}"
        groups.append({"kicker": kicker, **_search_group(context, found)})
    return context.section("search", "Highest rate within the SLO", intro, groups, asked="serving")


def _search_group(context, found):
    rows = [
        point(scheme, p["rate_per_s"], (p["within_share"], p["within_low"], p["within_high"]), display.share)
        for scheme, probes in found.items()
        for p in probes
        if p["within_share"] is not None
    ]
    share = json.loads(next(iter(found.values()))[0]["slo"])["share"]
    panels = []
    if rows:
        rows = context.in_order(rows)
        axis = {"x_title": "requests per second", "y_title": "share of requests within the SLO"}
        chart = charts.lines(rows, context.look, reference=share, **axis)
        panels = [panel("Within the SLO", chart, rows, "requests per second")]
    # An invalid load tells of the client, or of a failure, not of what the server can do: there the bracket is open.
    ends = {
        scheme: bracket([probe for probe in probes if probe["probe_status"] != "invalid"])
        for scheme, probes in found.items()
    }
    numbers, best = [], None
    for scheme, (met, missed) in ends.items():
        gain = rate_gain(ends.get(context.baseline), (met, missed)) if scheme != context.baseline else None
        if gain and gain[1] and gain[1] > 1 and (best is None or gain[1] > best[1][1]):
            best = scheme, gain
        at = next((p["output_tokens_per_s"] for p in found[scheme] if p["rate_per_s"] == met and p["met"]), None)
        tokens = display.rate(at, "tokens/s") if at else display.MISSING
        gain_text = display.with_interval(gain, display.factor) if gain else ""
        numbers.append([scheme, _end(met), _end(missed), tokens, gain_text])
    columns = ["scheme", "highest that met it", "lowest that did not", "tokens generated at it"]
    undecided = [p for probes in found.values() for p in probes if _undecided(p, share)]
    return {
        "heading": _search_heading(context, ends, best),
        "panels": panels,
        "notes": [_undecided_note(undecided)] if undecided else [],
        "numbers": {"columns": [*columns, f"rate over {context.baseline}’s"], "rows": numbers},
        "more": [_probes_table(found)],
    }


def rate_gain(base, mine):
    """(gain, low, high) of one bracket (met, missed) over another: as far apart, and as close, as the two allow.

    The value is the ratio of the rates that met the SLO; an end is None where a bracket is open there. None where either has
    no rate that met it.
    """
    if not base or base[0] is None or mine[0] is None:
        return None
    low = mine[0] / base[1] if base[1] else None
    high = mine[1] / base[0] if mine[1] else None
    return mine[0] / base[0], low, high


def _end(rate):
    return display.MISSING if rate is None else _per_second(rate)


def _search_heading(context, ends, best):
    base = context.baseline
    if best:
        scheme, (_, least, _) = best
        met = f"{scheme} meets the SLO at {_per_second(ends[scheme][0])}, {base} at {_per_second(ends[base][0])}"
        return f"{met}: at least {display.factor(least)} the rate"
    if all(met is None for met, _ in ends.values()):
        return "No scheme meets the SLO at the lowest rate that was tried"
    if all(missed is None for _, missed in ends.values()):
        most = _per_second(max(met for met, _ in ends.values()))
        return f"At the highest rate that was tried, {most}, the SLO is still met"
    if base in ends and ends[base][0] is not None:
        return f"No scheme is certain to meet the SLO at a higher rate than {base}, {_per_second(ends[base][0])}"
    able = [scheme for scheme, (met, _) in ends.items() if met is not None]
    return f"{base} does not meet the SLO at any rate that was tried; {display.listed(able)} can"


def _undecided(probe, share):
    low, high = probe["within_low"], probe["within_high"]
    return low is not None and low < share < high


def _undecided_note(probes):
    count = f"{len(probes)} load{'s' if len(probes) > 1 else ''}"
    return (
        f"Of {count} the interval holds the share that the SLO asks for: by chance the search may have turned there to the "
        "other side. More requests per load would tell."
    )


def _probes_table(found):
    rows = []
    for scheme, probes in found.items():
        for p in probes:
            share = display.with_interval((p["within_share"], p["within_low"], p["within_high"]), display.share)
            met = "yes" if p["met"] else "no"
            failed = "" if p["probe_status"] == "ok" else f"{p['probe_status']}: {p['probe_reason']}"
            sent = display.seconds(p["requests"] / p["rate_per_s"])
            rows.append([scheme, f"{p['rate_per_s']:g}", sent, share, met, _end(p["goodput_per_s"]), failed])
    columns = ["scheme", "requests per second", "sent within", "requests within", "SLO met", "goodput", "not ok"]
    return {
        "title": "Every load of the search",
        "note": "In the order in which they were sent. A load that is over before a line can form meets any SLO: it should go "
        "on for several times as long as an answer takes.",
        "columns": columns,
        "rows": rows,
    }
