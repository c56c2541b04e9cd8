"""The report's section that decides under the study's constraints: the cheapest scheme and gpu, how sure that is, what else."""

from quantbench import capacity, charts, constraints, display, goodput, pareto
from quantbench.cost import ASKED
from quantbench.sections import panel, point
from quantbench.sections_cost import NO_PRICE, dollars

NO_SLO = (
    "The study has constraints but no serving.slo: what a request may take decides how much a device carries. Say it, and this "
    "report is rendered anew without measuring anything."
)
NO_LOAD = "No load by rate was measured, so how much a device carries within the SLO is not known."
WITHIN = {constraints.FEASIBLE: "yes", constraints.INFEASIBLE: "no", constraints.UNDECIDED: "undecided"}
NAMES = {
    "runs": "can be chosen",
    "slo": "most requests/s within the SLO",
    "recovery": "share of the baseline’s right answers",
    "memory_bytes": "memory of a device",
    "usd_per_hour": "cost per hour",
}


def decision(context):
    """The section, or None for a study without `constraints`."""
    limits = context.study.get("constraints")
    if limits is None:
        return None
    slo, prices = (context.study.get("serving") or {}).get("slo"), _prices(context)
    groups = _groups(context, limits, slo, prices) if slo else []
    section = context.section("decision", "Decision under constraints", _intro(limits, slo, prices), groups, "serving")
    if not groups:
        section["missing"] = NO_LOAD if slo else NO_SLO
    return section


def _prices(context):
    priced = ((gpu, entry.get("price_usd_per_hour")) for gpu, entry in context.manifest["gpus"].items())
    return {gpu: price for gpu, price in priced if price is not None}


def _intro(limits, slo, prices):
    """What is asked, in a sentence, and how it is judged."""
    asked = [goodput.words(slo, display.seconds)] if slo else []
    if limits.get("recovery") is not None:
        asked.append(f"at least {display.share(limits['recovery'])} as many right answers as {{baseline}}’s")
    if limits.get("memory_bytes") is not None:
        asked.append(f"the engine holds at most {display.amount(limits['memory_bytes'], 'B')} of a device")
    if limits.get("usd_per_hour") is not None:
        asked.append(f"all devices together cost at most {dollars(limits['usd_per_hour'])} an hour")
    load = limits.get("load_per_s")
    cost = f"what the devices for {load:g} requests per second cost" if load else "that of a million output tokens"
    return (
        f"Asked: {'; '.join(asked)}. Met where the whole {{ci}} % interval is on the right side, missed where none of it is. "
        f"Cost is {cost}, at the highest request rate that met the SLO; its interval reaches from the lowest rate that is "
        "certain to miss it to the highest that is certain to meet it. The chance is that of being the cheapest that meets "
        "everything, over resamples of questions and requests."
    )


def _groups(context, limits, slo, prices):
    frames = {name: context.ok(name) for name in ("serving", "search", "accuracy")}
    rows = {name: [] if frame is None else frame.to_dicts() for name, frame in frames.items()}
    loads = capacity.loads_by_rate(rows["serving"], rows["search"], slo, context.confidence)
    devices = context.study["engine"].get("tensor_parallel_size", 1)
    asked = constraints.Asked(limits, slo, prices, devices, context.confidence)
    fronts = pareto.interactivity_and_throughput(rows["serving"], context.confidence, devices)
    groups, drawn = [], {}
    for place in dict.fromkeys(tuple(load[name] for name in ("model", *ASKED)) for load in loads):
        model = place[0]
        entries = [entry for entry in context.summary if entry["model"] == model]
        mine = [load for load in loads if tuple(load[name] for name in ("model", *ASKED)) == place]
        if model not in drawn and limits.get("recovery") is not None:
            answers = [row for row in rows["accuracy"] if row["model"] == model]
            drawn[model] = constraints.drawn_recoveries(entries, answers)
        found = constraints.decide(entries, mine, drawn.get(model, {}), _memory(context, model), asked)
        groups.append(_group(context, place, found, entries, asked, fronts.get(place, [])))
    return groups


def _memory(context, model):
    frame = context.tables.get("memory")
    rows = [] if frame is None else frame.to_dicts()
    return {(r["gpu"], r["scheme"]): r["peak_bytes"] for r in rows if r["model"] == model and (r["start"] or 1) == 1}


def _group(context, place, found, entries, asked, front):
    model, workload, inputs, outputs = place
    numbers = [[v["scheme"], v["gpu"], *_figure(figure)] for v in found["variants"] for figure in v["figures"]]
    columns = ["scheme", "gpu", "constraint", "limit", "measured", "state", "what would tell, or why"]
    tables = [
        _accuracy_front(task, points) for task, points in pareto.accuracy_and_cost(found["variants"], entries).items()
    ]
    return {
        "kicker": f"{model} · {f'workload {workload}' if workload else f'{inputs} tokens in, {outputs} out'}",
        "heading": heading(found),
        "panels": _panels(context, found),
        "notes": notes(found, asked),
        "table": _table(found, asked),
        "numbers": {"columns": columns, "rows": numbers},
        "more": tables + ([_interactivity_front(front)] if front else []),
    }


def _panels(context, found):
    """What each variant that has a cost, and may meet the constraints, costs; an interval with an open end has no bar."""
    title = "An hour of all devices" if found["metric"] == "usd_per_hour" else "A million tokens"
    several, rows = len(context.study["gpus"]) > 1, []
    for v in found["variants"]:
        value, low, high = v["cost"]
        if value is not None and v["state"] != constraints.INFEASIBLE:
            ends = (None, None) if low is None or high is None else (low, high)
            row = point(v["scheme"], None, (value, *ends), dollars)
            label = f"{v['scheme']} · {v['gpu']}" if several else v["scheme"]
            unsure = " ?" if v["state"] == constraints.UNDECIDED else ""
            row |= {"label": f"{label}{unsure}", "text": _ends(v["cost"], dollars)}
            rows.append(row)
    if found["winner"] is None or len(rows) < 2:
        return []
    chart = charts.intervals(rows, context.look, x_title="US dollars, log scale", log=True)
    return [panel(f"{title}, within the constraints (?: undecided)", chart, rows)]


# --- sentences --------------------------------------------------------------------------------------------------------


def _named(variant):
    return f"{variant['scheme']} on {variant['gpu']}"


def _cost(found, variant):
    unit = "an hour" if found["metric"] == "usd_per_hour" else "a million tokens"
    return f"{dollars(variant['cost'][0])} {unit}"


def _chance(value):
    """A share of resamples: they cannot tell 1 from nearly 1."""
    if value is None:
        return display.MISSING
    told = 2 / constraints.DRAWS
    if told <= value <= 1 - told:
        return display.share(value)
    return f"below {display.share(told)}" if value < told else f"over {display.share(1 - told)}"


def heading(found):
    """What to serve, or why nothing can be named."""
    if best := found["winner"]:
        if found["tied"]:
            names = display.listed(map(_named, [best, *found["tied"]]))
            return f"Cheapest within the constraints, at the same cost: {names}, {_cost(found, best)}"
        return f"Cheapest within the constraints: {_named(best)}, {_cost(found, best)}"
    states = {variant["state"] for variant in found["variants"]}
    if constraints.FEASIBLE in states:
        able = [_named(v) for v in found["variants"] if v["state"] == constraints.FEASIBLE]
        return f"Within the constraints: {display.listed(able)}; which is cheapest takes prices"
    if constraints.UNDECIDED in states:
        likely = max(found["variants"], key=lambda v: v["chance"] or 0)
        most = f"; likeliest to be the cheapest that does is {_named(likely)}" if likely["chance"] else ""
        return f"No scheme is certain to meet the constraints{most}"
    return "No scheme meets the constraints"


def notes(found, asked):
    """How sure the winner is, who comes next, from which load on that changes, and what would tell more."""
    said, best, second = [], found["winner"], found["runner_up"]
    if not asked.prices:
        said.append(NO_PRICE)
    if best and best["chance"] is not None and not found["tied"]:
        unknown = any(v["state"] == constraints.UNDECIDED and v["chance"] is None for v in found["variants"])
        among = ", those without a chance left out" if unknown else ""
        chance = _chance(best["chance"])
        said.append(f"{_named(best)} is the cheapest that meets everything in {chance} of the resamples{among}.")
    elif found["tied"] and all(v["rate"][0] == best["rate"][0] for v in found["tied"]):
        said.append(
            "They meet the SLO at the same rates of those that were sent: other rates (serving.search) would tell them apart."
        )
    if second:
        said.append(f"Runner-up: {_named(second)}, {_cost(found, second)}. {_break_even(found)}")
    if best and asked.limits.get("load_per_s"):
        full = best["copies"][0] * best["rate"][0]
        devices = best["copies"][0] * asked.devices
        said.append(
            f"{devices} device{'s' if devices > 1 else ''} of {best['gpu']} carry up to {_per_s(full)} with {best['scheme']}."
        )
    if best and best["rate"][2] is None:
        said.append(
            f"The highest rate that was sent is not certain to be too high for {best['scheme']}: it may carry more, and cost less."
        )
    cheaper = [v for v in found["variants"] if v["state"] == constraints.UNDECIDED and _may_be_cheaper(v, best)]
    alike = {}
    for variant in cheaper:
        alike.setdefault(_tells(variant), []).append(_named(variant))
    said += [f"Undecided of {display.listed(names)}: {what}." for what, names in alike.items()]
    if not best and found["none"]:
        said.append(f"In {_chance(found['none'])} of the resamples none meets everything.")
    return said


def _may_be_cheaper(variant, best):
    return best is None or variant["cost"][0] is None or variant["cost"][0] < best["cost"][0]


def _break_even(found):
    if found["break_even"] is None:
        return "At no higher load is that one cheaper per hour, each with as many devices as it takes."
    load, which = found["break_even"]
    cheaper = (found["winner"], found["runner_up"])[which]
    more = "where one device more is needed"
    return f"Break-even: just above {_per_s(load)}, {more}, {_named(cheaper)} becomes the cheaper of the two per hour."


def _tells(variant):
    said = []
    for figure in variant["figures"]:
        if figure["state"] == constraints.UNDECIDED:
            said.append(f"{_name(figure)}: {_needs(figure)}")
    return "; ".join(said)


def _name(figure):
    name = NAMES[figure["constraint"]]
    return f"{name} ({figure['of']})" if figure["constraint"] == "recovery" and figure["of"] else name


def _needs(figure):
    """What would decide an undecided figure; why a missed one is missed, where that is no number."""
    if figure["why"]:
        return display.in_short(figure["why"])
    if figure["state"] != constraints.UNDECIDED:
        return ""
    if figure["constraint"] == "usd_per_hour":
        return "a narrower bracket of rates (serving.search) would tell"
    what = "questions" if figure["constraint"] == "recovery" else f"requests at {_per_s(figure['of'])}"
    return f"about {figure['needed']:,} {what} would tell" if figure["needed"] else f"no number of {what} would tell"


# --- tables -----------------------------------------------------------------------------------------------------------


def _number(value):
    return display.MISSING if value is None else f"{value:.3g}"


def _per_s(value):
    return f"{value:.3g} request{'' if value == 1 else 's'}/s"


def _ends(estimate, shown):
    """A value with its interval, of which one end may be open."""
    value, low, high = estimate
    if low == high:
        return shown(value)
    return f"{shown(value)} [{'…' if low is None else shown(low)}, {'…' if high is None else shown(high)}]"


def _table(found, asked):
    columns = [
        "scheme",
        "gpu",
        "meets them all",
        "requests/s within the SLO",
        "a million tokens",
        "devices",
        "an hour",
        "chance",
    ]
    rows = []
    for v in found["variants"]:
        devices = tuple(n and n * asked.devices for n in v["copies"])
        rows.append(
            [
                v["scheme"],
                v["gpu"],
                WITHIN[v["state"]],
                _ends(v["rate"], _number),
                _ends(v["usd_per_million"], dollars),
                _ends(devices, lambda n: display.MISSING if n is None else str(n)),
                _ends(v["usd_per_hour"], dollars),
                display.MISSING if v["state"] == constraints.INFEASIBLE and not v["chance"] else _chance(v["chance"]),
            ]
        )
    return {"columns": columns, "rows": rows}


def _figure(figure):
    shown = {"recovery": display.share, "memory_bytes": lambda b: display.amount(b, "B"), "usd_per_hour": dollars}
    show = shown.get(figure["constraint"], _number)
    limit = "" if figure["limit"] is None else show(figure["limit"])
    measured = _ends((figure["value"], figure["low"], figure["high"]), show)
    return [_name(figure), limit, measured, figure["state"], _needs(figure)]


def _accuracy_front(task, points):
    rows = [
        [p["scheme"], p["gpu"], _ends(p["share"], display.share), _ends(p["usd_per_million"], dollars)] for p in points
    ]
    return {
        "title": f"Pareto front: accuracy on {task} and cost",
        "note": "Every scheme and device that no other beats in the one without being worse in the other, by their values.",
        "columns": ["scheme", "gpu", f"right answers of {task}", "a million tokens"],
        "rows": rows,
    }


def _interactivity_front(points):
    rows = [
        [
            p["scheme"],
            p["gpu"],
            _level(p),
            _ends(p["per_user"], lambda rate: display.rate(rate, "tokens/s")),
            display.rate(p["per_device"], "tokens/s"),
        ]
        for p in points
    ]
    return {
        "title": "Pareto front: interactivity and throughput per device",
        "note": "What one user sees, one over the median time per further token, and what all of them get from a device "
        "(measured once a load, so without an interval), at every load that was sent, within the SLO or not.",
        "columns": ["scheme", "gpu", "load", "tokens/s per user", "tokens/s per device"],
        "rows": rows,
    }


def _level(point):
    if point["level"] is None:
        return "all requests at once"
    return f"{point['level']:g} requests {'per second' if point['load'] == 'rate' else 'at once'}"
