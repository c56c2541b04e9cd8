"""Two studies side by side, or one at two times: what changed, whether chance explains it, and what differs in how it was
measured. What is compared are points of one meaning (device, model, scheme and parameters), whatever their keys."""

import json
import math
from collections import Counter
from pathlib import Path

from quantbench import display, paired, statistics
from quantbench.comparison import BATCH, REQUESTS
from quantbench.errors import UserError
from quantbench.plan import changed_fields
from quantbench.quality import grouped
from quantbench.store import Store
from quantbench.tables import build_tables, point_columns, read_tables

VARIANT = ("gpu", "model", "scheme")
# What tells the points of a variant apart, table by table, and which column holds their time, or what else is compared.
TIMES = {
    "latency": (BATCH, lambda row: row["elapsed_s"]),
    "throughput": (BATCH, lambda row: row["elapsed_s"]),
    "serving": (REQUESTS, lambda row: row["finished_s"] - row["scheduled_s"]),
    "gemm": (("contender", "product", "layer", "n", "k", "m", "launch", "cache"), lambda row: row["latency_s"]),
}
TASK = ("task", "dataset", "shots", "chat_template", "filter")
MOST_LINES = 40


def find_other(name, manifest):
    """(manifest, tables) of what a study is compared with. Raises UserError, with what would be valid, where it is nothing.

    name   another study (results/<name>), a copy of a results folder, or a store in which this study was measured too
    """
    for folder in (Path("results") / name, Path(name)):
        if name and (folder / "manifest.json").is_file() and (folder / "tables").is_dir():
            return json.loads((folder / "manifest.json").read_text()), read_tables(folder / "tables")
    if name and (Path(name) / "points").is_dir():
        return manifest, build_tables(manifest, Store(name))
    valid = "the name of a study with tables in results/, a copy of such a folder, or a store"
    raise UserError(f"--config compare={name or '...'}: has to be {valid}")


def compare(there, here, confidence=None):
    """{"changes", "same", "fields", "only_there", "only_here"} of two (manifest, tables); `there` is the earlier one.

    changes     [{"what", "metric", "before", "after", "change", "low", "high", "p", "p_holm", "significant"}]: `change` is the
                ratio of times (below 1: faster now), of perplexities, or the difference of shares; p is Holm-adjusted over all
    same        how many points are the very same measurement
    fields      {field of the identity that differs: points}
    only_there, only_here   points that the other has not, in words
    """
    confidence = confidence or here[0]["study"].get("repeats", {}).get("confidence", 0.95)
    changes, same = [], 0
    for metric, before, after, what in _pairs(there[1], here[1]):
        if {row["run_id"] for row in before} == {row["run_id"] for row in after}:
            same += 1
        elif found := _change(metric, before, after, confidence):
            changes.append({"what": what, "metric": metric, **found})
    known = [change for change in changes if change["p"] is not None]
    for change, p in zip(known, statistics.holm([change["p"] for change in known]), strict=True):
        change["p_holm"] = p
    for change in changes:
        p = change.setdefault("p_holm", None)
        change["significant"] = None if p is None else p < 1 - confidence
    fields, only_there, only_here = _identities(there[0], here[0])
    return {"changes": changes, "same": same, "fields": fields, "only_there": only_there, "only_here": only_here}


def _pairs(there, here):
    """(metric, rows there, rows here, what they are of) of every point that both have measured."""
    for table, columns in [
        *((name, TIMES[name][0]) for name in TIMES),
        ("accuracy", TASK),
        ("perplexity", ("dataset",)),
    ]:
        sides = [_groups(tables.get(table), (*VARIANT, *columns)) for tables in (there, here)]
        for values, after in sides[1].items():
            if values in sides[0]:
                shown = [
                    f"{name} {value}" for name, value in zip(columns, values[3:], strict=True) if value is not None
                ]
                variant = "/".join(str(value) for value in values[:3] if value is not None)
                yield table, sides[0][values], after, f"{variant}, {', '.join(shown)}"


def _groups(frame, columns):
    """Measured rows of the first start by point."""
    rows = (
        [] if frame is None else [row for row in frame.to_dicts() if row["status"] == "ok" and row.get("start", 1) == 1]
    )
    return grouped(rows, *columns)


def _change(metric, before, after, confidence):
    if metric == "accuracy":
        return _answers(before, after, confidence)
    if metric == "perplexity":
        return _perplexity(before, after, confidence)
    times = [[TIMES[metric][1](row) for row in rows if not row.get("error")] for rows in (before, after)]
    times = [[value for value in side if value is not None and value > 0] for side in times]
    if not all(times):
        return None
    change, low, high = statistics.ratio_of_medians_ci(*times, confidence)
    medians = [statistics.median_ci(side, confidence)[0] for side in times]
    shown = {"before": display.seconds(medians[0]), "after": display.seconds(medians[1])}
    return shown | {"change": change, "low": low, "high": high, "p": statistics.p_of_equal_medians(*times)}


def _answers(before, after, confidence):
    right = [
        {row["question"]: row["correct"] for row in rows if row["correct"] is not None} for rows in (before, after)
    ]
    both = sorted(right[0].keys() & right[1].keys())
    if not both:
        return None
    sides = [[side[question] for question in both] for side in right]
    lost, won = paired.discordant(*sides)
    change, low, high = paired.difference_ci(lost, won, len(both), confidence)
    shares = [display.share(sum(side) / len(both)) for side in sides]
    found = {"before": shares[0], "after": shares[1], "change": change, "low": low, "high": high}
    return found | {"p": paired.mcnemar_exact(lost, won)}


def _perplexity(before, after, confidence):
    sides = [{row["document"]: row for row in rows} for rows in (before, after)]
    both = [d for d in sides[0] if d in sides[1] and sides[0][d]["tokens"] == sides[1][d]["tokens"]]
    if not both:
        return None
    tokens = [sides[0][d]["tokens"] for d in both]
    nll = [[side[d]["negative_log_likelihood"] for d in both] for side in sides]
    change, low, high = statistics.perplexity_ratio_ci(*nll, tokens, confidence)
    shown = [f"{math.exp(sum(side) / sum(tokens)):.4g}" for side in nll]
    # An interval says whether, not how likely: no p-value, and no part in Holm's adjustment.
    return {"before": shown[0], "after": shown[1], "change": change, "low": low, "high": high, "p": None}


def _identities(there, here):
    """({field: points}, [only there], [only here]): in what the points' identities differ."""
    sides = [_by_meaning(manifest) for manifest in (there, here)]
    fields = Counter()
    for label in sides[0].keys() & sides[1].keys():
        (old_key, old), (new_key, new) = sides[0][label], sides[1][label]
        fields.update(changed_fields(old, new) if old_key != new_key else [])
    words = [sorted({_words(label) for label in a.keys() - b.keys()}) for a, b in (sides, sides[::-1])]
    return dict(fields.most_common()), *words


def _by_meaning(manifest):
    checkpoints = {entry["key"]: entry["identity"] for entry in manifest["checkpoints"]}
    found = {}
    for point in manifest["points"]:
        columns = json.dumps(point_columns(point), sort_keys=True) if point["stage"] != "support" else ""
        label = (*(point[name] for name in ("stage", *VARIANT)), point.get("start", 1), columns)
        identity = dict(point["identity"])
        identity |= (
            {"checkpoint": checkpoints[identity["checkpoint"]]} if identity.get("checkpoint") in checkpoints else {}
        )
        found[label] = point["key"], identity
    return found


def _words(label):
    stage, *variant = label[:4]
    return f"{stage} of {'/'.join(name for name in variant if name)}"


def comparison_text(other, found):
    """The comparison in Markdown, as a terminal shows it too."""
    changed = sorted((c for c in found["changes"] if c["significant"]), key=_size, reverse=True)
    unsure = [change for change in found["changes"] if change["significant"] is None]
    count = len(found["changes"]) - len(changed) - len(unsure)
    lines = [f"# Against {other}", ""]
    lines.append(f"{len(found['changes'])} points compared; {found['same']} more are the same measurement.")
    lines += ["", "## How it was measured", ""]
    lines += [f"- {field} ({points} points)" for field, points in found["fields"].items()]
    lines += [] if found["fields"] else ["The same identities: nothing that is known to matter differs."]
    lines += ["", f"## What changed: {len(changed)}", ""]
    lines += _table(changed)
    lines += ["Times are medians; a ratio below 1 is faster now. Speeds come from one start of the engine each, and one start "
              "may differ from the next by more than these intervals say.", ""]  # fmt: skip
    lines.append(f"No significant difference at {count} points.")
    if unsure:
        lines += ["", f"## Without a test: {len(unsure)}", "", *_table(sorted(unsure, key=_size, reverse=True))]
    for name, title in (("only_there", f"Only in {other}"), ("only_here", "Only here")):
        if found[name]:
            lines += ["", f"## {title}", "", *[f"- {words}" for words in found[name][:MOST_LINES]]]
            lines += [f"- and {len(found[name]) - MOST_LINES} more"] if len(found[name]) > MOST_LINES else []
    return "\n".join(lines)


def _size(change):
    return abs(change["change"]) if change["metric"] == "accuracy" else abs(math.log(change["change"]))


def _table(changes):
    if not changes:
        return []
    lines = ["| what | before | after | change | p |", "|---|---|---|---|---|"]
    for change in changes[:MOST_LINES]:
        shown = display.points if change["metric"] == "accuracy" else lambda value: f"{value:.3f}×"
        estimate = display.with_interval((change["change"], change["low"], change["high"]), shown)
        p = display.MISSING if change["p_holm"] is None else f"{change['p_holm']:.2g}"
        what = f"{change['metric']}, {change['what']}".replace("|", "\\|")
        lines.append(f"| {what} | {change['before']} | {change['after']} | {estimate} | {p} |")
    if len(changes) > MOST_LINES:
        lines.append(f"| and {len(changes) - MOST_LINES} more | | | | |")
    return [*lines, ""]
