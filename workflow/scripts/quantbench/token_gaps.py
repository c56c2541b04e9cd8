"""Times between the tokens of an answer (ITL), kept as a histogram: as exact as needed, whatever the answer's length.

Bins are geometric, 1 % wide: bin b holds [1.01^b, 1.01^(b + 1)) microseconds, and stands for its geometric middle, so that a
time is known to half a percent. A row's `token_gaps` is JSON, {"bin": count}.
"""

import json
import math
from collections import Counter

import numpy as np

from quantbench.statistics import SEED

WIDTH, UNIT_S = 1.01, 1e-6
# As many as a percentile of the resampled percentiles needs; each resample is a row of weights.
RESAMPLES = 2000


def histogram(gaps_s):
    """JSON text {"bin": count} of seconds; None of an answer of one token, which has no gaps."""
    counts = Counter(max(math.floor(math.log(max(gap, UNIT_S) / UNIT_S) / math.log(WIDTH)), 0) for gap in gaps_s)
    return json.dumps({str(b): counts[b] for b in sorted(counts)}, separators=(",", ":")) if counts else None


def gap_quantiles(histograms, quantiles, confidence=0.95):
    """[(seconds, low, high)] of all gaps of a load, one for each quantile; None where no answer has gaps.

    Gaps of one answer hang together, so answers are resampled (cluster bootstrap), not gaps; low and high are None below
    two answers.
    """
    answers = [{int(b): count for b, count in json.loads(text).items()} for text in histograms if text]
    if not answers:
        return None
    bins = sorted({b for answer in answers for b in answer})
    counts = np.array([[answer.get(b, 0) for b in bins] for answer in answers], float)
    middles_s = UNIT_S * WIDTH ** (np.array(bins) + 0.5)

    def values(totals):
        """[resample, quantile] of the times: the bin in which the share of gaps reaches the quantile."""
        shares = np.cumsum(totals, axis=1) / totals.sum(axis=1, keepdims=True)
        return np.stack([middles_s[(shares < q - 1e-12).sum(axis=1)] for q in quantiles], axis=1)

    estimates = values(counts.sum(axis=0, keepdims=True))[0]
    if len(answers) < 2:
        return [(float(estimate), None, None) for estimate in estimates]
    weights = np.random.default_rng(SEED).multinomial(len(answers), [1 / len(answers)] * len(answers), size=RESAMPLES)
    tail = (1 - confidence) / 2
    lows, highs = np.quantile(values(weights @ counts), [tail, 1 - tail], axis=0)
    return [tuple(map(float, found)) for found in zip(estimates, lows, highs, strict=True)]
