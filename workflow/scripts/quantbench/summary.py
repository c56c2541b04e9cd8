"""The summary file (workflow/schemas/summary.schema.json) in Markdown: short enough for a merge request."""

import re

from quantbench import display
from quantbench.decision import METRIC_WORDS

# A larger study tells of each gpu and model the baseline and what was chosen.
MOST_ROWS = 40


def markdown(summary):
    """The answer in sentences, and one table of schemes beside the baseline. `summary` is first_screen.py's."""
    lines = [f"## {_text(summary['title'])}", ""]
    for answer in summary["answer"]:
        lines += [f"**{_text(answer['sentence'])}**", ""]
        latency = answer["latency"]
        lines += [_text(latency["sentence"]), ""] if latency else []
        lines += [f"What it may have missed: {_text(' '.join(answer['uncertain']))}", ""] if answer["uncertain"] else []
    rows = summary["schemes"]
    if len(rows) > MOST_ROWS:
        rows = [row for row in rows if row["chosen"] or row["scheme"] == summary["baseline"]]
    baseline = _text(summary["baseline"])
    lines += [f"| gpu | model | scheme | throughput | latency | accuracy against {baseline} | size | |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows[:MOST_ROWS]]
    left = len(summary["schemes"]) - len(rows[:MOST_ROWS])
    lines += ["", f"{left} more rows in the report."] if left else []
    lines += ["", f"Gains are times the {METRIC_WORDS['throughput']} or speed of {baseline}, with their intervals."]
    return "\n".join(lines) + "\n"


def _cells(row):
    cells = [_text(row[name]) for name in ("gpu", "model", "scheme")]
    cells += [_gain(row["throughput_gain"]), _gain(row["latency_gain"])]
    cells += [_accuracy(row["accuracy"]), display.amount(row["bytes"], "B")]
    verdict = "**chosen**" if row["chosen"] else ""
    return [*cells, verdict if row["status"] == "ok" else f"{row['status']}: {_text(display.in_short(row['reason']))}"]


def _gain(gain):
    if gain is None:
        return display.MISSING
    return display.with_interval((gain["gain"], gain["low"], gain["high"]), display.factor)


def _accuracy(found):
    compared = [one for one in found if one["difference"] is not None]
    said = [
        f"{_text(one['task'])} {display.with_interval(_difference(one), display.points)} points" for one in compared
    ]
    return "; ".join(said) or display.MISSING


def _difference(found):
    return found["difference"], found["difference_low"], found["difference_high"]


def _text(value):
    """One line that Markdown takes as text: no markup, no table's bar, no link, nobody's name called."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|#@!])", r"\\\1", line)
