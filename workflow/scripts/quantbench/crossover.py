"""From which batch size on another scheme is the faster one: of each pair of schemes, with an interval. Pure.

A pair's batch sizes are judged one by one first (comparison.gain_of): one scheme is faster there, the other one is, or the
interval holds 1. Where one is faster at a batch size and the other at the next that is decided, they cross in between.

There the logarithm of the ratio of their times is taken as linear in the logarithm of the batch size between two measured
ones. The interval is of bootstrap resamples of the repeats: its low end of the first time that a resample's ratio passes 1,
its high end of the last. Where variants were started more than once a shift of all batch sizes together, as large as starts
differ (Student's t), is added to each resample.
"""

from itertools import combinations, pairwise

import numpy as np

from quantbench import statistics
from quantbench.comparison import BATCH, TIMED, Chance, gain_of, seconds, start_spreads, timed_points, variants_of
from quantbench.quality import by_start

CROSSES, NONE, UNDECIDED = "crosses", "none", "undecided"


def crossovers(tables, metric, confidence=0.95):
    """[{"gpu", "model", "schemes": (a, b), "input_tokens", "output_tokens", "workload", "batch_sizes", "kind", ...}].

    metric  throughput, latency, prefill or decode
    kind    crosses    and "crossings": [{"faster_below", "faster_above", "batch", "low", "high", "between"}]; between are
                       the decided batch sizes on either side
            none       one is faster at every batch size, and is "faster"
            undecided  one may be faster, or the other, at batch sizes that are "open"; "faster" where one is at the others

    Pairs that share fewer than two batch sizes have no entry.
    """
    variants = variants_of(tables, [TIMED[metric][0]])
    spreads = start_spreads(variants)
    sweeps = {}
    for (gpu, model, scheme), rows in variants.items():
        for point, found in timed_points(rows, metric).items():
            where = (gpu, model, *point[1:])
            sweeps.setdefault(where, {}).setdefault(scheme, {})[point[0]] = found
    found = []
    for (gpu, model, *load), schemes in sweeps.items():
        chance = Chance(confidence, {metric: spreads.get((gpu, model, metric))})
        for a, b in combinations(schemes, 2):
            batches = sorted(schemes[a].keys() & schemes[b].keys())
            if len(batches) > 1:
                where = {"gpu": gpu, "model": model, "schemes": (a, b), **dict(zip(BATCH[1:], load, strict=True))}
                pair = {name: [schemes[name][batch] for batch in batches] for name in (a, b)}
                found.append({**where, "batch_sizes": batches, **compare(pair, batches, metric, chance)})
    return found


def compare(pair, batches, metric, chance):
    """What `crossovers` says of two schemes: {scheme: [rows at each of the batch sizes]}."""
    a, b = pair
    gains = [gain_of(*rows, metric, chance) for rows in zip(pair[b], pair[a], strict=True)]
    signs = [_sign(gain["low"], gain["high"]) for gain in gains]
    decided = [place for place, sign in enumerate(signs) if sign]
    faster = {1: a, -1: b}
    turns = [(i, j) for i, j in pairwise(decided) if signs[i] != signs[j]]
    if turns:
        crossings = [
            {
                "faster_below": faster[signs[i]],
                "faster_above": faster[signs[j]],
                "between": (batches[i], batches[j]),
                **_crossing(pair, batches, i, j, signs[i], metric, chance),
            }
            for i, j in turns
        ]
        return {"kind": CROSSES, "crossings": crossings}
    one = faster[signs[decided[0]]] if decided else None
    open_ = [batch for batch, sign in zip(batches, signs, strict=True) if not sign]
    return {"kind": UNDECIDED, "faster": one, "open": open_} if open_ else {"kind": NONE, "faster": one}


def _sign(low, high):
    if low is None or low <= 1 <= high:
        return 0
    return 1 if low > 1 else -1


def _crossing(pair, batches, i, j, sign, metric, chance):
    """{"batch", "low", "high"} between the batch sizes of places i and j; `sign` is 1 where a is faster below."""
    places = range(i, j + 1)
    x = np.log2([batches[place] for place in places])
    a, b = ([[seconds(row, metric) for row in rows[place]] for place in places] for rows in pair.values())
    medians = [[np.log(np.median(times)) for times in side] for side in (a, b)]
    apart = sign * np.subtract(*medians[::-1])[:, None]
    logs = [
        np.log([statistics.resampled_quantiles(times, 0.5, stream=2 * k + side) for k, times in enumerate(times_of)])
        for side, times_of in enumerate((a, b))
    ]
    resampled = sign * (logs[1] - logs[0])
    spread = chance.spreads[metric]
    if spread is not None and spread[0] is not None:
        starts = [len(by_start(rows[i])) for rows in pair.values()]
        scale = np.sqrt(spread[0] * sum(1 / count for count in starts))
        shifts = np.random.default_rng(statistics.SEED).standard_t(spread[1], resampled.shape[1])
        resampled = resampled + scale * shifts
    estimate = np.mean([_passes(x, apart, last) for last in (False, True)])
    tail = (1 - chance.confidence) / 2
    low = np.quantile(_passes(x, resampled, last=False), tail)
    high = np.quantile(_passes(x, resampled, last=True), 1 - tail)
    return {"batch": float(2**estimate), "low": float(2 ** min(low, estimate)), "high": float(2 ** max(high, estimate))}


def _passes(x, values, last):
    """Where each column of `values`, above zero at its beginning, first (or last) passes zero on its way down.

    x  [n], values  [n, columns]; linear between two rows. A column that begins below zero passes at the first x, one that
    ends above it at the last.
    """
    above = values > 0
    n = len(x)
    if last:
        # The last row above zero, or -1.
        before = n - 1 - np.argmax(above[::-1], axis=0)
        before = np.where(above.any(axis=0), before, -1)
    else:
        # The row before the first that is not above zero, or the last row of all.
        before = np.where((~above).any(axis=0), np.argmax(~above, axis=0) - 1, n - 1)
    i = np.clip(before, 0, n - 2)
    columns = np.arange(values.shape[1])
    y0, y1 = values[i, columns], values[i + 1, columns]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip(np.where(y0 != y1, y0 / (y0 - y1), 0.0), 0.0, 1.0)
    found = x[i] + share * (x[i + 1] - x[i])
    return np.where(before < 0, x[0], np.where(before >= n - 1, x[-1], found))
