"""Intervals, paired tests and sample sizes: everything a comparison of two schemes needs, on numpy and scipy alone.

Baseline first, always: a difference is `value - baseline`, a ratio is `value / baseline`. Generators are seeded, so the
same data give the same interval. A sample too small for an interval gives None, not a guess.
"""

import functools
import math

import numpy as np
from scipy.special import bdtr, ndtri

SEED = 0
RESAMPLES = 10_000

# Numbers held at once while resampling (8 bytes each): a long data set is resampled in blocks of this many.
BLOCK_ITEMS = 4_000_000


def median_ci(values, confidence=0.95):
    """Median and its percentile bootstrap interval (Efron 1979): (median, low, high); low and high None below 2 values.

    From n values the interval cannot leave [least, greatest], which holds the true median with chance 1 - 2 (1/2)^n at
    most: 75 % for 3 repeats, 94 % for 5. Intervals of very few repeats are narrower than they claim to be.
    """
    return quantile_ci(values, 0.5, confidence)


def quantile_ci(values, q, confidence=0.95):
    """Quantile q in [0, 1], linearly interpolated, and its percentile bootstrap interval; as `median_ci`."""
    values = _sample(values)
    estimate = float(np.quantile(values, q))
    if len(values) < 2:
        return estimate, None, None
    return estimate, *_interval(resampled_quantiles(values, q, stream=0), confidence)


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

    (ratio, low, high); low and high None when either sample has fewer than 2 values. Raises ValueError unless every
    value is positive.
    """
    return ratio_of_quantiles_ci(baseline, values, 0.5, confidence)


def ratio_of_quantiles_ci(baseline, values, q, confidence=0.95):
    """As `ratio_of_medians_ci` for quantile q: the p99 of request latencies is q = 0.99."""
    baseline, values = _sample(baseline), _sample(values)
    if min(baseline.min(), values.min()) <= 0:
        raise ValueError("a ratio of times needs positive times")
    ratio = float(np.quantile(values, q) / np.quantile(baseline, q))
    if min(len(baseline), len(values)) < 2:
        return ratio, None, None
    below, above = resampled_quantiles(baseline, q, stream=0), resampled_quantiles(values, q, stream=1)
    return ratio, *_interval(above / below, confidence)


def wilson(successes, n, confidence=0.95):
    """Wilson's score interval of a share (Wilson 1927): (low, high), within [0, 1] also at 0 and n successes.

    centre = (p + z^2 / 2n) / (1 + z^2 / n),  half = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share")
    z = _z_two_sided(confidence)
    p, shrink = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Exact by algebra at the ends; rounding would leave 1e-17 there.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def discordant(baseline_correct, correct):
    """Pairs that differ: (right in the baseline only, right in the other only)."""
    baseline_correct, correct = _pairs(baseline_correct, correct, bool)
    return int(np.sum(baseline_correct & ~correct)), int(np.sum(~baseline_correct & correct))


def mcnemar_exact(baseline_correct, correct):
    """Two-sided exact McNemar test (McNemar 1947, binomial form): the p-value of "neither is better".

    Of the n pairs that differ, either side wins with chance 1/2: p = min(1, 2 P(Binomial(n, 1/2) <= the smaller side)).
    No pair differs: p = 1.
    """
    lost, won = discordant(baseline_correct, correct)
    if lost + won == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(lost, won), lost + won, 0.5)))


def paired_bootstrap_ci(a, b, confidence=0.95):
    """mean(b) - mean(a) over pairs, and its percentile bootstrap interval (Efron 1979), pairs resampled together.

    (difference, low, high); low and high None below 2 pairs. With no pair that differs the interval is [0, 0], which
    says how the sample varies, not how the truth could: put `smallest_detectable_difference` beside it.
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
    return float(differences.mean()), *_interval(means, confidence)


def perplexity_ratio_ci(baseline_nll, nll, tokens, confidence=0.95):
    """Perplexity over baseline perplexity on the same documents, and its bootstrap interval, documents resampled.

    `baseline_nll` and `nll` are nats summed per document, `tokens` the documents' lengths:
    ratio = exp(sum(nll - baseline_nll) / sum(tokens)). (ratio, low, high); low and high None below 2 documents.
    """
    baseline_nll, nll = _pairs(baseline_nll, nll, float)
    tokens, extra = _pairs(tokens, nll - baseline_nll, float)
    ratio = math.exp(extra.sum() / tokens.sum())
    if len(extra) < 2:
        return ratio, None, None
    rng = np.random.default_rng(SEED)
    logs = _in_blocks(rng, len(extra), lambda picked: extra[picked].sum(axis=1) / tokens[picked].sum(axis=1))
    return ratio, *_interval(np.exp(logs), confidence)


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


def questions_needed(difference, discordant_share, confidence=0.95, power=0.8):
    """Pairs with which McNemar's test shows `difference` with chance `power` (Connor 1987, formula 2).

    n = (z_alpha sqrt(psi) + z_power sqrt(psi - d^2))^2 / d^2, psi the share of pairs that differ, at least |d|.
    None for a difference of zero: no number of questions shows it.
    """
    d = abs(difference)
    if d == 0:
        return None
    psi = max(discordant_share, d)
    z_alpha, z_power = _z_two_sided(confidence), float(ndtri(power))
    return math.ceil((z_alpha * math.sqrt(psi) + z_power * math.sqrt(psi - d * d)) ** 2 / (d * d))


def smallest_detectable_difference(n, discordant_share, confidence=0.95, power=0.8):
    """The difference that McNemar's test on n pairs would have shown with chance `power`: Connor 1987 solved for d.

    d = sqrt(psi) (z_alpha sqrt(n) + z_power sqrt(n + z_power^2 - z_alpha^2)) / (n + z_power^2)
    A d above psi cannot be (the difference is at most the share of pairs that differ): then psi = d, every differing
    pair on one side, and d = (z_alpha + z_power sqrt(1 - d))^2 / n, solved by bisection. None when even d = 1 hides.
    The exact test is a little weaker than this approximation.
    """
    z_alpha, z_power = _z_two_sided(confidence), float(ndtri(power))
    # At d = 1 the formula reads 1 = z_alpha^2 / n.
    if n < z_alpha * z_alpha:
        return None
    root = z_alpha * math.sqrt(n) + z_power * math.sqrt(n + z_power**2 - z_alpha**2)
    d = math.sqrt(discordant_share) * root / (n + z_power**2)
    if d < discordant_share:
        return d
    low, high = 0.0, 1.0
    for _ in range(60):
        d = (low + high) / 2
        low, high = (low, d) if n * d >= (z_alpha + z_power * math.sqrt(1 - d)) ** 2 else (d, high)
    return high


def _z_two_sided(confidence):
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a share such as 0.95, not {confidence}")
    return float(ndtri(0.5 + confidence / 2))


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


def _interval(resampled, confidence):
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def resampled_quantiles(values, q, stream):
    """Quantile q of RESAMPLES bootstrap resamples. Two of one number of values and one stream follow each other."""
    lower, upper, weight = _quantile_ranks(len(values), q, stream)
    values = np.sort(values)
    return values[lower] + weight * (values[upper] - values[lower])


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
