"""Pareto fronts: what no other point beats in one respect without losing in the other. Pure."""

from quantbench import goodput
from quantbench.cost import ASKED, LOAD
from quantbench.statistics import median_ci


def front(points, gains):
    """The points that no other dominates, in order of the first gain, the greatest first.

    gains  function of a point: numbers, of which more is better. A point is dominated where another is at least as good in
           each and better in one, so equals stay together.
    """
    valued = sorted(((gains(point), point) for point in points), key=lambda pair: pair[0], reverse=True)

    def dominated(mine):
        return any(all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine for other, _ in valued)

    return [point for mine, point in valued if not dominated(mine)]


def accuracy_and_cost(variants, entries):
    """{task: front of [{"gpu", "scheme", "share", "usd_per_million"}]}, each (value, low, high).

    variants  constraints.decide's; entries: comparison.summarize's of the same model
    """
    priced = {(v["gpu"], v["scheme"]): v["usd_per_million"] for v in variants if v["usd_per_million"][0] is not None}
    tasks = {}
    for entry in entries:
        place = entry["gpu"], entry["scheme"]
        for found in entry["accuracy"]:
            if found["decides"] and place in priced:
                point = dict(zip(("gpu", "scheme"), place, strict=True)) | {"usd_per_million": priced[place]}
                point["share"] = tuple(found[name] for name in ("share", "low", "high"))
                tasks.setdefault((found["task"], found["dataset"], found["shots"]), []).append(point)
    return {at[0]: front(points, lambda p: (p["share"][0], -p["usd_per_million"][0])) for at, points in tasks.items()}


def interactivity_and_throughput(serving, confidence=0.95, devices=1):
    """{(model, ASKED...): front of [{"gpu", "scheme", "load", "level", "per_user", "per_device"}]}, of all loads.

    serving     rows of the table of that name, as dicts, measured ones alone
    per_user    tokens per second that a user sees: one over the median time per further token, (value, low, high)
    per_device  tokens per second of the load, over the devices that the model is divided among; of one load, no interval
    """
    sent, points = {}, {}
    for row in serving:
        if (row.get("start") or 1) == 1:
            at = tuple(row[name] for name in ("model", *ASKED, "gpu", "scheme", *LOAD))
            sent.setdefault(at, []).append(row)
    for at, rows in sent.items():
        times = [seconds for row in rows if (seconds := goodput.tpot_s(row))]
        if not times:
            continue
        asked, first = at[: 1 + len(ASKED)], rows[0]
        median, low, high = median_ci(times, confidence)
        point = {name: first[name] for name in ("gpu", "scheme", "load")}
        point["level"] = first["rate_per_s"] if first["load"] == "rate" else first["concurrency"]
        # Of a mean of few times the interval may reach zero, and the rate any height.
        point["per_user"] = 1 / median, high and 1 / high, 1 / low if low and low > 0 else None
        tokens = sum(row["output_tokens"] for row in rows)
        point["per_device"] = tokens / goodput.duration_s(rows) / devices
        points.setdefault(asked, []).append(point)
    return {asked: front(found, lambda p: (p["per_user"][0], p["per_device"])) for asked, found in points.items()}
