"""Whether two ways of measuring agree, when each start of a process shifts all that it measures.

Repeats within one process share its memory layout and the state of the machine at that minute: an interval from them
alone says nothing about the next start. So both sides start several times, the logarithm of each start's median is one
observation, and its variance between starts, pooled over the points of a stage, is what the intervals are made of.
"""

import math
from collections import defaultdict

import numpy as np
from quantbench.statistics import median_ci
from scipy import stats

SIDES = ("ours", "theirs")


def compare(points, confidence=0.95):
    """Rows of the comparison, one per point.

    points: [{"stage", "point", "ours": [[seconds of one start], ...], "theirs": ...}], as many starts for every point.

    A row: stage, point, ours and theirs as (median, low, high), difference as (relative, low, high), agree (the
    difference's interval holds 0), agree_jointly (it does at this confidence for all rows together, Bonferroni).
    """
    spreads = {side: start_spread(points, side) for side in SIDES}
    return [_row(point, spreads, confidence, len(points)) for point in points]


def start_spread(points, side):
    """{stage: (variance of a start's log median, degrees of freedom)}, pooled over the stage's points."""
    variances = defaultdict(list)
    starts = {len(point[side]) for point in points}
    if len(starts) != 1 or min(starts) < 2:
        raise ValueError(f"needs at least two starts, and equally many for every point, not {sorted(starts)}")
    for point in points:
        variances[point["stage"]].append(np.var(_log_medians(point[side]), ddof=1))
    (count,) = starts
    return {stage: (float(np.mean(found)), len(found) * (count - 1)) for stage, found in variances.items()}


def _row(point, spreads, confidence, rows):
    logs = {side: _log_medians(point[side]) for side in SIDES}
    # The variance of each side's mean, and the degrees of freedom of their sum (Welch and Satterthwaite).
    means = {
        side: (spreads[side][point["stage"]][0] / len(logs[side]), spreads[side][point["stage"]][1]) for side in SIDES
    }
    variance = sum(part for part, _ in means.values())
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in means.values()) if variance else 1
    apart = logs["ours"].mean() - logs["theirs"].mean()

    def half(alpha):
        return stats.t.ppf(1 - alpha / 2, freedom) * math.sqrt(variance)

    alpha = 1 - confidence
    sides = {}
    for side, (part, degrees) in means.items():
        reach = stats.t.ppf(1 - alpha / 2, degrees) * math.sqrt(part)
        sides[side] = [math.exp(logs[side].mean() + step) for step in (0, -reach, reach)]
    return {
        "stage": point["stage"],
        "point": point["point"],
        **sides,
        "difference": [math.expm1(apart + step) for step in (0, -half(alpha), half(alpha))],
        "agree": bool(abs(apart) <= half(alpha)),
        "agree_jointly": bool(abs(apart) <= half(alpha / rows)),
        "starts": {side: point[side] for side in SIDES},
    }


def compare_rounds(values, limit, confidence=0.95):
    """Two sides that measured in turn: {"ours", "theirs", "difference", "limit", "verdict", "rounds"}.

    values  {"ours": [seconds of each round], "theirs": [...]}: what one round's pair has in common cancels in its ratio

    ours and theirs are medians over rounds. difference is (relative, low, high): the median of the rounds' ratios with its
    order-statistics interval, which a round that something disturbed does not move. The verdict is "within" the limit or
    "apart" by more where the whole interval is, else "undecided".
    """
    ratios = [ours / theirs - 1 for ours, theirs in zip(*(values[side] for side in SIDES), strict=True)]
    difference = median_ci(ratios, confidence)
    _, low, high = difference
    verdict = "undecided"
    if -limit <= low and high <= limit:
        verdict = f"within {100 * limit:g} %"
    elif low > limit or high < -limit:
        verdict = f"apart by more than {100 * limit:g} %"
    medians = {side: float(np.median(values[side])) for side in SIDES}
    return {**medians, "difference": difference, "limit": limit, "verdict": verdict, "rounds": values}


def stage_difference(rows, confidence=0.95):
    """{stage: (relative difference over all its points, low, high)}: what every point of a stage shares."""
    found = {}
    for stage in dict.fromkeys(row["stage"] for row in rows):
        logs = np.log1p([row["difference"][0] for row in rows if row["stage"] == stage])
        reach = math.nan
        if len(logs) > 1:
            reach = stats.t.ppf(0.5 + confidence / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
        found[stage] = tuple(math.expm1(logs.mean() + step) for step in (0, -reach, reach))
    return found


def _log_medians(starts):
    return np.log([np.median(seconds) for seconds in starts])
