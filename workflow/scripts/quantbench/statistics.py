"""Intervals of medians, quantiles, ratios and means per token, and Holm's adjustment, on numpy and scipy alone.

Baseline first, always: a difference is `value - baseline`, a ratio is `value / baseline`. Generators are seeded, so the
same data give the same interval. A sample too small for an interval gives None, not a guess. What the intervals hold in
simulation is in tests/bench/error_rates.py. Pairs of right and wrong answers are paired.py's.
"""

import functools
import math

import numpy as np
from scipy.special import bdtr, ndtr, stdtr, stdtrit

SEED = 0
RESAMPLES = 10_000

# From so few documents resampling often draws one alone: 5 documents do so in 5 / 5^5 = 0.2 % of the resamples, 4 in 2 %.
STUDENTIZED = 5

# Numbers held at once while resampling (8 bytes each): a long data set is resampled in blocks of this many.
BLOCK_ITEMS = 4_000_000


def median_ci(values, confidence=0.95):
    """Median and its interval: (median, low, high); low and high None below 2 values.

    Order statistics, as `quantile_ci`. Fewer than 6 values have none at 95 %: their range holds the true median with
    chance 1 - 2 (1/2)^n, 75 % for 3 and 94 % for 5. There it is joined by Student's interval of the mean, which knows
    how much more than the range of 3 values there may be.
    """
    values = np.sort(_sample(values))
    estimate = float(np.median(values))
    if len(values) < 2:
        return estimate, None, None
    if spans(len(values), 0.5, confidence):
        return estimate, *_order_statistics(values, 0.5, confidence)
    half = student(confidence, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    mean = float(values.mean())
    return estimate, min(float(values[0]), mean - half), max(float(values[-1]), mean + half)


def quantile_ci(values, q, confidence=0.95):
    """Quantile q in [0, 1], linearly interpolated, and its distribution-free interval; for q = 1/2 as `median_ci`.

    The ends are the values at ranks r and s of n, counted from 1, the innermost that leave the quantile out with chance
    (1 - confidence) / 2 at most on either side: P(Binomial(n, q) < r) and P(Binomial(n, q) >= s) (David and Nagaraja
    2003, 7.1). low and high are None where there are no such ranks (`spans`): the greatest of 20 values is below the
    0.99 quantile with chance 0.99^20 = 82 %.
    """
    if q == 0.5:
        return median_ci(values, confidence)
    values = np.sort(_sample(values))
    estimate = float(np.quantile(values, q))
    if not spans(len(values), q, confidence):
        return estimate, None, None
    return estimate, *_order_statistics(values, q, confidence)


def _order_statistics(values, q, confidence):
    n, tail = len(values), (1 - confidence) / 2
    # chance[k] = P(Binomial(n, q) <= k); rank r = k + 1 is values[k].
    chance = bdtr(np.arange(n), n, q)
    low = int(np.searchsorted(chance, tail, side="right")) - 1
    high = int(np.searchsorted(chance, 1 - tail, side="left"))
    return float(values[low]), float(values[high])


def spans(n, q, confidence):
    """Whether n values may hold their quantile q between two of them at this confidence: q^n and (1 - q)^n are its tails."""
    return n > 1 and max(q**n, (1 - q) ** n) <= (1 - confidence) / 2


def values_to_span(q, confidence=0.95):
    """The fewest values with an interval of quantile q: 6 for the median at 95 %, 368 for the p99."""
    n = 2
    while not spans(n, q, confidence):
        n += 1
    return n


def narrow_enough(values, repeats):
    """Whether to stop repeating a measurement.

    `repeats` is the study's {"least", "most", "relative_ci", "confidence"}: stop after `most` values, or after `least`
    once the whole width of the median's interval is at most `relative_ci` times the median.
    """
    if len(values) >= repeats["most"]:
        return True
    if len(values) < max(repeats["least"], 2):
        return False
    median, low, high = median_ci(values, repeats["confidence"])
    return high - low <= repeats["relative_ci"] * abs(median)


def ratio_of_medians_ci(baseline, values, confidence=0.95):
    """median(values) / median(baseline) and its bootstrap interval, both samples resampled independently.

    (ratio, low, high); low and high None when either sample has fewer than 2 values. Where one of them is too small for
    an interval of its own (`median_ci`), Welch's interval of the logarithms is joined. Raises ValueError unless every
    value is positive.
    """
    return ratio_of_quantiles_ci(baseline, values, 0.5, confidence)


def ratio_of_quantiles_ci(baseline, values, q, confidence=0.95):
    """As `ratio_of_medians_ci` for quantile q: the p99 of request latencies is q = 0.99. None as in `quantile_ci`."""
    baseline, values = _sample(baseline), _sample(values)
    if min(baseline.min(), values.min()) <= 0:
        raise ValueError("a ratio of times needs positive times")
    ratio = float(np.quantile(values, q) / np.quantile(baseline, q))
    fewest = min(len(baseline), len(values))
    if fewest < 2 or (q != 0.5 and not spans(fewest, q, confidence)):
        return ratio, None, None
    below, above = resampled_quantiles(baseline, q, stream=0), resampled_quantiles(values, q, stream=1)
    low, high = _interval(above / below, confidence)
    if not spans(fewest, q, confidence):
        apart, half = _welch(np.log(baseline), np.log(values), confidence)
        low, high = min(low, math.exp(apart - half)), max(high, math.exp(apart + half))
    return ratio, low, high


def p_of_equal_medians(baseline, values):
    """Two-sided p-value of a ratio of medians of 1; None below 2 values of either.

    Bootstrap: p = 2 min(#(ratio <= 1) + 1, #(ratio >= 1) + 1) / (resamples + 1), at most 1 (Davison and Hinkley 1997,
    4.4). Two samples of 3 that do not overlap, which chance makes one time in ten, would have p = 0.0002 by it: where a
    sample is too small for an interval of its own (`median_ci`) it is at least Welch's p-value of the logarithms.
    """
    baseline, values = _sample(baseline), _sample(values)
    fewest = min(len(baseline), len(values))
    if fewest < 2:
        return None
    ratios = resampled_quantiles(values, 0.5, stream=1) / resampled_quantiles(baseline, 0.5, stream=0)
    rarer = min(int((ratios <= 1).sum()), int((ratios >= 1).sum()))
    p = min(1.0, 2 * (rarer + 1) / (len(ratios) + 1))
    if spans(fewest, 0.5, 0.95):
        return p
    apart, error, freedom = _apart(np.log(baseline), np.log(values))
    return max(p, 2 * float(stdtr(freedom, -abs(apart) / error))) if error else p


def _apart(a, b):
    """(mean of b - mean of a, its standard error, degrees of freedom by Welch and Satterthwaite)."""
    parts = [sample.var(ddof=1) / len(sample) for sample in (a, b)]
    variance = sum(parts)
    freedom = (
        variance**2 / sum(part**2 / (len(s) - 1) for part, s in zip(parts, (a, b), strict=True)) if variance else 1
    )
    return float(b.mean() - a.mean()), math.sqrt(variance), float(freedom)


def _welch(a, b, confidence):
    apart, error, freedom = _apart(a, b)
    return apart, student(confidence, freedom) * error


def student(confidence, freedom):
    """Student's t of a two-sided interval: 12.7 for 95 % and one degree of freedom."""
    return float(stdtrit(freedom, 0.5 + confidence / 2))


def paired_bootstrap_ci(a, b, confidence=0.95):
    """mean(b) - mean(a) over pairs, and its percentile bootstrap interval (Efron 1979), pairs resampled together.

    (difference, low, high); low and high None below 2 pairs. With no pair that differs the interval is [0, 0], which
    says how the sample varies, not how the truth could: of right and wrong answers `paired.difference_ci` decides.
    """
    a, b = _pairs(a, b, float)
    differences = b - a
    if len(differences) < 2:
        return float(differences.mean()), None, None
    rng = np.random.default_rng(SEED)
    values, counts = np.unique(differences, return_counts=True)
    if len(values) <= 3:
        # Right or wrong: only how often -1, 0 and 1 are drawn matters, and those counts are multinomial.
        drawn = rng.multinomial(len(differences), counts / len(differences), size=RESAMPLES)
        means = drawn @ values / len(differences)
    else:
        means = _in_blocks(rng, len(differences), lambda picked: differences[picked].mean(axis=1))
    return float(differences.mean()), *_interval(means, confidence, len(differences))


def mean_per_token_ci(totals, tokens, confidence=0.95):
    """sum(totals) / sum(tokens) over documents, and its interval, documents resampled: (mean, low, high).

    Tokens of one document hang together, so the document is what is drawn (cluster bootstrap). Divergences are skewed, so
    it is the studentized bootstrap (Efron and Tibshirani 1993, 12.5): low = mean - t* se, t* the upper percentile of
    (mean* - mean) / se* over resamples, and se that of a ratio, sqrt(n / (n - 1) sum((total - mean tokens)^2)) / sum(tokens).
    Joined to it is Student's interval with the jackknife's error, which does not overlook that of few documents one long
    one may weigh most; below STUDENTIZED documents it is Student's alone, below 2 there is none. For KL divergence and
    top-1 agreement, whose `totals` are sums over a document's tokens.
    """
    totals, tokens = _pairs(totals, tokens, float)
    n, mean = len(totals), float(totals.sum() / tokens.sum())
    if n < 2:
        return mean, None, None
    without = (totals.sum() - totals) / (tokens.sum() - tokens)
    half = student(confidence, n - 1) * math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    _, error = _ratio_and_error(totals, tokens)
    if n < STUDENTIZED or error <= 1e-12 * abs(mean):
        return mean, mean - half, mean + half
    rng = np.random.default_rng(SEED)

    def studentized(picked):
        means, errors = _ratio_and_error(totals[picked], tokens[picked])
        # One document drawn n times has no error of its own: as far out as can be.
        return (means - mean) / np.maximum(errors, 1e-12 * error)

    tail = (1 - confidence) / 2
    far, near = np.quantile(_in_blocks(rng, n, studentized), [1 - tail, tail], method="inverted_cdf")
    return mean, mean - max(half, float(far * error)), mean + max(half, float(-near * error))


def _ratio_and_error(totals, tokens):
    """sum(totals) / sum(tokens) along the last axis, and its standard error."""
    n, all_tokens = totals.shape[-1], tokens.sum(axis=-1)
    ratio = totals.sum(axis=-1) / all_tokens
    left = totals - ratio[..., None] * tokens
    return ratio, np.sqrt(n / (n - 1) * (left * left).sum(axis=-1)) / all_tokens


def perplexity_ratio_ci(baseline_nll, nll, tokens, confidence=0.95):
    """Perplexity over baseline perplexity on the same documents, and its bootstrap interval, documents resampled.

    `baseline_nll` and `nll` are nats summed per document, `tokens` the documents' lengths:
    ratio = exp(sum(nll - baseline_nll) / sum(tokens)). (ratio, low, high); low and high None below 2 documents.
    """
    baseline_nll, nll = _pairs(baseline_nll, nll, float)
    extra = nll - baseline_nll
    mean, low, high = mean_per_token_ci(extra, tokens, confidence)
    return math.exp(mean), *((None, None) if low is None else (math.exp(low), math.exp(high)))


def holm(p_values):
    """Holm's step-down adjustment (Holm 1979), in the order given.

    The i-th smallest of m is multiplied by m - i + 1, never below the one before it, at most 1. Comparing the adjusted
    values with alpha keeps the chance of any false alarm among the m comparisons below alpha.
    """
    p = np.asarray(p_values, float)
    adjusted, floor = np.empty(len(p)), 0.0
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        floor = max(floor, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = floor
    return adjusted.tolist()


# --- from one start of an engine to the next --------------------------------------------------------------------------


def start_variance(variants):
    """(variance of a start's log median, degrees of freedom), pooled; (None, 0) where nothing was started twice.

    variants  one array a variant, of shape [starts, points]: the logarithm of each start's median at each point of a stage

    A start shifts all its points together, and each of them by itself besides. Of s starts and p points:
        shared  variance between the starts' means over points          s - 1 degrees of freedom
        own     variance of what is left, times (p - 1) / p              (s - 1) (p - 1)
    The variance of one point is their sum, its degrees of freedom those of Satterthwaite (1946): many points of two
    starts tell much of what is a point's own, and little of what a start's points share.
    """
    sums, freedoms = [0.0, 0.0], [0, 0]
    points = 0
    for logs in (np.asarray(variant, float) for variant in variants):
        starts, width = logs.shape
        if starts < 2 or width < 1:
            continue
        left = logs - logs.mean(axis=1, keepdims=True) - logs.mean(axis=0, keepdims=True) + logs.mean()
        sums[0] += float(logs.mean(axis=1).var(ddof=1)) * (starts - 1)
        sums[1] += float((left**2).sum()) * (width - 1) / width if width > 1 else 0.0
        freedoms = [freedoms[0] + starts - 1, freedoms[1] + (starts - 1) * (width - 1)]
        points += 1
    if not points:
        return None, 0
    parts = [total / freedom if freedom else 0.0 for total, freedom in zip(sums, freedoms, strict=True)]
    variance = sum(parts)
    each = sum(part**2 / freedom for part, freedom in zip(parts, freedoms, strict=True) if freedom)
    return variance, variance**2 / each if each else float(sum(freedoms))


def gain_between_starts(baseline_logs, logs, spread, confidence=0.95):
    """(gain, low, high): exp(mean(baseline_logs) - mean(logs)), one logarithm of a median time a start.

    `spread` is `start_variance`'s: the interval says how far the gain would move were both started again. low and high
    None without it.
    """
    apart = float(np.mean(baseline_logs) - np.mean(logs))
    variance, freedom = spread
    if variance is None:
        return math.exp(apart), None, None
    half = student(confidence, freedom) * math.sqrt(variance * (1 / len(baseline_logs) + 1 / len(logs)))
    return math.exp(apart), math.exp(apart - half), math.exp(apart + half)


# --- samples ----------------------------------------------------------------------------------------------------------


def _sample(values):
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError("a sample is a non-empty list of finite numbers")
    return values


def _pairs(a, b, dtype):
    a, b = np.asarray(_sample(a), dtype), np.asarray(_sample(b), dtype)
    if len(a) != len(b):
        raise ValueError(f"pairs need equally many values, not {len(a)} and {len(b)}")
    return a, b


def _interval(resampled, confidence, n=None):
    """Percentiles of a resampled mean or quantile.

    Of a mean of n values they are taken further out, where Student's t stands for the normal and n - 1 for n (Hesterberg
    2015, 5.3): bootstrap intervals of few documents would be too narrow.
    """
    tail = (1 - confidence) / 2
    if n is not None:
        tail = float(ndtr(-math.sqrt(n / (n - 1)) * student(confidence, n - 1)))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def resampled_quantiles(values, q, stream):
    """Quantile q of RESAMPLES bootstrap resamples. Two of one number of values and one stream follow each other."""
    lower, upper, weight = _quantile_ranks(len(values), q, stream)
    values = np.sort(values)
    # An odd number of values has its median among them: half the time, and the same numbers.
    return values[lower] + weight * (values[upper] - values[lower]) if weight else values[lower]


@functools.lru_cache(maxsize=32)
def _quantile_ranks(n, q, stream):
    """(lower, upper, weight): from which ranks of n >= 2 sorted values the quantile of each resample is interpolated.

    The resamples are not made (David and Nagaraja 2003, 2.1). Each is n uniform draws u, a draw taking the value at
    rank floor(n u), so its k-th smallest value is that at the k-th smallest u, which is Beta(k, n + 1 - k); given the
    one above, the largest of the k below it is that times v^(1/k), v uniform.
    """
    below = math.floor((n - 1) * q)
    weight = (n - 1) * q - below
    if below == n - 1:
        below, weight = n - 2, 1.0
    rng = np.random.default_rng([SEED, stream])
    upper = rng.beta(below + 2, n - 1 - below, RESAMPLES)
    lower = upper * rng.random(RESAMPLES) ** (1 / (below + 1))
    ranks = [np.minimum((n * u).astype(int), n - 1) for u in (lower, upper)]
    return *ranks, weight


def _in_blocks(rng, n, statistic):
    """`statistic` of RESAMPLES rows of n indices drawn with replacement, a block of rows at a time."""
    rows = max(1, BLOCK_ITEMS // n)
    blocks = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    return np.concatenate([statistic(rng.integers(0, n, size=(count, n))) for count in blocks])
