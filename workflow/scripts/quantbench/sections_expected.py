"""The report's section on expectations: what the study, or others, expected of its schemes, and what was measured."""

from collections import Counter

from quantbench import display
from quantbench.expectations import MET, MISSED, NOT_MEASURED, UNDECIDED, judge

METRICS = {
    "throughput": "throughput",
    "latency": "speed of a batch",
    "e2e_p50": "speed of the median answer",
    "e2e_p99": "speed of the p99 answer",
    "recovery": "accuracy",
    "perplexity": "perplexity",
    "size": "size of the weights",
}
PLACES = {
    "batch_size": "at batch {}",
    "load": "by {}",
    "level": "at {:g}",
    "input_tokens": "{} tokens in",
    "output_tokens": "{} out",
    "task": "{}",
    "dataset": "{}",
}


def expectations(context):
    """The section, or None for a study that states none."""
    asked = context.study.get("expectations")
    if not asked:
        return None
    intro = (
        "A figure over {baseline}, with its {ci} % interval. Met: the whole interval lies between the ends that were "
        "expected. Missed: none of it does. Undecided: it reaches over an end, so more repeats or questions would tell."
    )
    rows, groups = judge(asked, context.summary), []
    for place in dict.fromkeys((row["gpu"], row["model"]) for row in rows):
        here = [row for row in rows if (row["gpu"], row["model"]) == place]
        columns = ["scheme", "expected", "of", "where", "measured", "verdict", "who expected it"]
        table = {"columns": columns, "rows": [_cells(row) for row in here]}
        kicker = " · ".join(place)
        groups.append(
            {"kicker": kicker, "heading": heading(here), "panels": [], "notes": _missed(here), "numbers": table}
        )
    return context.section("expectations", "Expected and measured", intro, groups)


def heading(rows):
    """ "Of 5 expectations 3 are met, 1 is missed and 1 is undecided"."""
    counts = Counter(row["verdict"] for row in rows)
    said = [f"{counts[word]} {'is' if counts[word] == 1 else 'are'} {word}" for word in ORDER if counts[word]]
    return f"Of {len(rows)} expectation{'' if len(rows) == 1 else 's'} {display.listed(said)}"


ORDER = (MET, MISSED, UNDECIDED, NOT_MEASURED)


def _missed(rows):
    """Surprises first: what was expected and did not happen."""
    return [
        f"Missed: “{row['claim']}”: {row['scheme']} {display.with_interval(_estimate(row), display.factor)}"
        f"{f' {where}' if (where := _where(row)) else ''}."
        for row in rows
        if row["verdict"] == MISSED
    ]


def _cells(row):
    measured = display.with_interval(_estimate(row), display.factor)
    said = [row["scheme"], ends(row["between"]), METRICS[row["metric"]], _where(row), measured, row["verdict"]]
    return [*said, f"{row['claim']} ({row['source'] or 'this study'})"]


def _estimate(row):
    return row["value"], row["low"], row["high"]


def _where(row):
    return ", ".join(said.format(row["at"][key]) for key, said in PLACES.items() if row["at"].get(key) is not None)


def ends(between):
    """[1.5, 1.8] -> "1.50× to 1.80×"; an end that is null: "at least", "at most"."""
    least, most = between
    if least is None:
        return f"at most {display.factor(most)}"
    return f"at least {display.factor(least)}" if most is None else f"{display.factor(least)} to {display.factor(most)}"
