"""Statistics against worked arithmetic, and against statsmodels and scipy where those have the function."""

import itertools
import math
import time

import numpy as np
import pytest
from quantbench import statistics
from scipy import stats
from statsmodels.stats.multitest import multipletests

REPEATS = {"least": 3, "most": 10, "relative_ci": 0.05, "confidence": 0.95}


def test_median_of_one_value_has_no_interval():
    assert statistics.median_ci([2.5]) == (2.5, None, None)


def test_median_of_equal_values_has_a_point_interval():
    assert statistics.median_ci([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_median_interval_of_few_values_reaches_beyond_them():
    # the range of 3 values holds the median with chance 1 - 2 / 2^3 = 75 %, of 5 with 93.75 %: Student's interval is joined
    # 1, 2, 3: mean 2, standard deviation 1, t(2) = 4.303: 2 +- 4.303 / sqrt(3) = 2 +- 2.484
    assert statistics.median_ci([3.0, 1.0, 2.0]) == pytest.approx((2.0, -0.484, 4.484), abs=1e-3)
    assert statistics.median_ci([3.0, 1.0, 2.0])[1:] == pytest.approx(stats.t.interval(0.95, 2, 2, 1 / math.sqrt(3)))
    # at 75 % the range itself will do
    assert statistics.median_ci([3.0, 1.0, 2.0], 0.7)[1:] == (1.0, 3.0)
    # 6 values: 1 - 2 / 2^6 = 96.9 %, so the interval stays within them
    assert statistics.median_ci([1.0, 2, 3, 4, 5, 60])[1:] == (1.0, 60.0)


def test_ratio_of_few_values_reaches_as_far_as_welchs():
    a, b = [1.0, 1.01, 1.03], [1.2, 1.21, 1.25, 1.22]
    ratio, low, high = statistics.ratio_of_medians_ci(a, b)
    welch = stats.ttest_ind(np.log(b), np.log(a), equal_var=False).confidence_interval(0.95)
    assert (low, high) == pytest.approx((math.exp(welch.low), math.exp(welch.high)))
    assert low < 1.215 / 1.01 == ratio < high


def test_three_repeats_that_do_not_overlap_may_be_chance():
    # two samples of 3 are apart one time in C(6,3) / 2 = 10, whichever is above: far from p = 0.0002
    a, b = [1.0, 1.02, 1.04], [1.05, 1.07, 1.09]
    expected = stats.ttest_ind(np.log(a), np.log(b), equal_var=False).pvalue
    assert statistics.p_of_equal_medians(a, b) == pytest.approx(expected) and expected > 0.03
    assert statistics.p_of_equal_medians([1.0], b) is None
    assert statistics.p_of_equal_medians([1.0] * 3, [1.0] * 3) == 1.0
    assert statistics.p_of_equal_medians([1.0] * 3, [2.0] * 3) < 0.001


def test_median_interval_follows_the_order_statistics():
    # 101 values 0..100, rank r is value r - 1: P(Bin(101, 1/2) < 41) = 2.31 % and < 42: 3.67 %; so ranks 41 and 61
    assert statistics.median_ci(range(101)) == (50.0, 40.0, 60.0)
    assert stats.binom.cdf(40, 101, 0.5) <= 0.025 < stats.binom.cdf(41, 101, 0.5)
    # 10 values: P(Bin(10, 1/2) < 2) = 11/1024 = 1.1 %, < 3: 5.5 %: the second from either end. The bootstrap's
    # interval of 7 values would leave their ends out, and hold the median with chance 1 - 2 * 8/128 = 87.5 % only.
    assert statistics.median_ci(range(10)) == (4.5, 1.0, 8.0)
    assert statistics.median_ci(range(7)) == (3.0, 0.0, 6.0)


@pytest.mark.parametrize("n", [3, 5, 7, 15, 40])
def test_median_interval_holds_what_it_promises(n):
    # 1000 samples of an exponential distribution, median ln 2: a standard error of 0.7 points. With 3 values of something
    # so skewed Student's interval falls short by some points; see make bench.
    samples = np.random.default_rng(n).exponential(size=(1000, n))
    held = [low <= math.log(2) <= high for _, low, high in map(statistics.median_ci, samples)]
    assert np.mean(held) > (0.9 if n < 6 else 0.95 - 0.021)


def test_same_data_same_interval():
    values = np.random.default_rng(3).normal(10, 1, 40)
    assert statistics.median_ci(values) == statistics.median_ci(values)
    assert statistics.median_ci(values, 0.5)[1] > statistics.median_ci(values, 0.99)[1]


@pytest.mark.parametrize(
    ("n", "q"), [(2, 0.5), (3, 0.5), (5, 0.5), (10, 0.9), (60, 0.99), (61, 0.5), (4, 0.0), (4, 1.0)]
)
def test_quantiles_are_drawn_as_if_every_resample_had_been_made(n, q):
    values = np.random.default_rng(n).lognormal(size=n)
    resamples = values[np.random.default_rng(11).integers(0, n, size=(40_000, n))]
    expected = np.quantile(resamples, q, axis=1)
    drawn = statistics.resampled_quantiles(values, q, stream=0)
    # Kolmogorov-Smirnov at 99 %: 1.63 sqrt(1/10,000 + 1/40,000) = 0.018. Rounded, or equal values would seem to differ.
    at = np.unique(np.round(np.concatenate([expected, drawn]), 9)) + 1e-9
    below = [np.searchsorted(np.sort(sample), at, side="right") / len(sample) for sample in (expected, drawn)]
    assert np.max(np.abs(below[0] - below[1])) < 0.018


def test_a_quantile_of_many_values_costs_what_one_of_few_does():
    started = time.perf_counter()
    for _ in range(20):
        statistics.quantile_ci(range(100_000), 0.99)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0], [2.0]]])
def test_what_is_no_sample_is_refused(values):
    with pytest.raises(ValueError, match="sample"):
        statistics.median_ci(values)


def test_repeating_stops_when_narrow_or_at_most():
    assert not statistics.narrow_enough([1.0, 1.0], REPEATS)  # fewer than least
    assert statistics.narrow_enough([1.0, 1.0, 1.0], REPEATS)
    # six values: the interval is their range, here 0.2 of a median of 1, more than 5 %
    assert not statistics.narrow_enough([0.9, 1.0, 1.1] * 2, REPEATS)
    # [0.98, 1.02]: width 0.04
    assert statistics.narrow_enough([0.98, 1.0, 1.02] * 2, REPEATS)
    # [0.97, 1.03]: half of its width is below 5 %, the whole is not
    assert not statistics.narrow_enough([0.97, 1.0, 1.03] * 2, REPEATS)
    # the same [0.98, 1.02] of three values: Student's 2 * 4.303 * 0.02 / sqrt(3) = 0.1 is not narrow
    assert not statistics.narrow_enough([0.98, 1.0, 1.02], REPEATS)
    assert statistics.narrow_enough([1.0, 2.0] * 5, REPEATS)  # ten values, however wide
    assert not statistics.narrow_enough([1.0], REPEATS | {"least": 1})  # one value shows no spread


def test_ratio_of_medians():
    assert statistics.ratio_of_medians_ci([2.0, 2.0], [3.0, 3.0]) == pytest.approx((1.5, 1.5, 1.5))
    assert statistics.ratio_of_medians_ci([2.0], [3.0, 3.0]) == (1.5, None, None)
    # baseline in [1, 2], values in [4, 6]: the ratio is never outside 4/2 and 6/1
    ratio, low, high = statistics.ratio_of_medians_ci([1.0, 1.5, 2.0] * 2, [4.0, 5.0, 6.0] * 2)
    assert ratio == pytest.approx(5 / 1.5)
    assert 2 <= low < ratio < high <= 6
    with pytest.raises(ValueError, match="positive"):
        statistics.ratio_of_medians_ci([0.0, 1.0], [1.0, 2.0])


def test_equal_samples_are_resampled_independently():
    # resampled in step, two equal samples would give a ratio of exactly 1 with no width
    _, low, high = statistics.ratio_of_medians_ci([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert low < 1 < high


def test_p99_is_interpolated():
    # 1..101: the 0.99 quantile lies at rank 0.99 * 100 = 99, counted from 0: 100
    assert statistics.quantile_ci(range(1, 102), 0.99)[0] == pytest.approx(100)
    ratio, low, high = statistics.ratio_of_quantiles_ci(range(1, 502), range(2, 1003, 2), 0.99)
    assert ratio == pytest.approx(2)
    assert low < 2 < high


def test_a_p99_of_few_requests_has_no_interval():
    # all of n requests are below the true p99 with chance 0.99^n: 0.99^367 = 2.501 %, 0.99^368 = 2.476 %
    assert statistics.values_to_span(0.99) == 368
    assert statistics.quantile_ci(range(1, 368), 0.99)[1:] == (None, None)
    # the highest rank above: the greatest; below: P(Bin(368, 0.99) < 360) = 1.3 %, < 361: 3.1 %
    assert statistics.quantile_ci(range(1, 369), 0.99)[1:] == (360.0, 368.0)
    assert statistics.ratio_of_quantiles_ci(range(1, 21), range(1, 500), 0.99)[1:] == (None, None)
    assert statistics.quantile_ci(range(1, 30), 0.5)[1:] == statistics.median_ci(range(1, 30))[1:]


def test_paired_bootstrap_worked():
    # of 200 pairs 12 are lost and 4 won: difference -8/200 = -4 points;
    # variance of one pair's difference 16/200 - 0.04^2 = 0.0784, standard error sqrt(0.0784/200) = 1.98 points
    baseline = [True] * 12 + [False] * 4 + [True] * 184
    other = [False] * 12 + [True] * 4 + [True] * 184
    difference, low, high = statistics.paired_bootstrap_ci(baseline, other)
    assert difference == pytest.approx(-0.04)
    assert (low, high) == pytest.approx((-0.04 - 1.96 * 0.0198, -0.04 + 1.96 * 0.0198), abs=0.003)


def test_paired_bootstrap_edges():
    assert statistics.paired_bootstrap_ci([True], [False]) == (-1.0, None, None)
    assert statistics.paired_bootstrap_ci([True] * 5, [True] * 5) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("n", [3, 4])
def test_paired_bootstrap_covers_exactly_what_all_resamples_say(n):
    # pairs with differences 0, 1, ..: all n^n resamples by hand, by counts (3 values) and by indices (4 values), at
    # percentiles widened for n (Hesterberg 2015): Phi(-sqrt(n / (n - 1)) t), t = Student's at n - 1 degrees
    means = [sum(draw) / n for draw in itertools.product(range(n), repeat=n)]
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.75, n - 1))
    expected = np.quantile(means, [tail, 1 - tail])
    assert tail < 0.25
    assert statistics.paired_bootstrap_ci([0] * n, range(n), 0.5)[1:] == pytest.approx(tuple(expected))


def test_blocks_change_nothing_but_memory(monkeypatch):
    a, b = np.zeros(50), np.random.default_rng(1).normal(size=50)
    whole = statistics.paired_bootstrap_ci(a, b)
    monkeypatch.setattr(statistics, "BLOCK_ITEMS", 170)  # three rows of 50 a block
    assert statistics.paired_bootstrap_ci(a, b) == pytest.approx(whole)


def test_perplexity_ratio_worked():
    # 10 + 30 tokens, 4 nats more in all: exp(4 / 40) = 1.105
    ratio, low, high = statistics.perplexity_ratio_ci([20.0, 60.0], [21.0, 63.0], [10, 30])
    assert ratio == pytest.approx(math.exp(0.1))
    # both documents lose 0.1 nats a token, so every resample says the same
    assert (low, high) == pytest.approx((ratio, ratio))
    assert statistics.perplexity_ratio_ci([20.0], [20.0], [10]) == (1.0, None, None)


def test_perplexity_ratio_weighs_documents_by_tokens():
    # +1 nat on 10 tokens and 0 on 90: exp(1/100), not the mean of exp(0.1) and 1
    ratio, low, high = statistics.perplexity_ratio_ci([20.0, 180.0], [21.0, 180.0], [10, 90])
    assert ratio == pytest.approx(math.exp(0.01))
    # two documents: Student's t of one degree of freedom, 12.706, times the error 0.05 of test_mean_per_token_worked
    assert (low, high) == pytest.approx((math.exp(0.01 - 0.6353), math.exp(0.01 + 0.6353)), rel=1e-3)


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03], [0.5, 0.5], [0.001], [1.0, 0.9, 0.02, 0.02, 0.3], []])
def test_holm_agrees_with_statsmodels(p_values):
    expected = multipletests(p_values, method="holm")[1] if p_values else []
    assert statistics.holm(p_values) == pytest.approx(list(expected))


def test_holm_worked():
    # 0.01 * 3 = 0.03; 0.03 * 2 = 0.06; 0.04 * 1 = 0.04, raised to the 0.06 before it
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


# --- per token, from start to start -----------------------------------------------------------------------------------


def test_mean_per_token_worked():
    # 0.5 nats over 10 tokens and 4.5 over 90: 5 / 100, whatever the documents' own means (0.05 both)
    assert statistics.mean_per_token_ci([0.5, 4.5], [10, 90]) == pytest.approx((0.05, 0.05, 0.05))
    # +1 on 10 tokens and 0 on 90: 1/100; without either it is 0 or 1/10, so the jackknife's error of two documents is
    # sqrt(1/2 * 2 * 0.05^2) = 0.05, and they leave one degree of freedom, t = 12.706
    expected = (0.01, 0.01 - 12.706 * 0.05, 0.01 + 12.706 * 0.05)
    assert statistics.mean_per_token_ci([1.0, 0.0], [10, 90]) == pytest.approx(expected, rel=1e-4)
    assert statistics.mean_per_token_ci([1.0], [10]) == (0.1, None, None)


def test_mean_per_token_of_many_documents_is_the_normal_interval():
    # 4000 documents of 100 tokens, totals of standard deviation 10: error 0.1 / sqrt(4000) = 0.00158 a token
    totals = np.random.default_rng(4).normal(50, 10, 4000)
    mean, low, high = statistics.mean_per_token_ci(totals, [100] * 4000)
    assert mean == pytest.approx(totals.mean() / 100)
    assert (mean - low, high - mean) == pytest.approx((1.96 * 0.00158, 1.96 * 0.00158), rel=0.05)


def test_tokens_of_one_document_are_no_independent_observations():
    # 30 documents of 100 tokens, each agreeing in all of them or in none: by tokens the standard error would be
    # sqrt(0.25 / 3000) = 0.009, by documents it is sqrt(0.25 / 29) = 0.093
    agreement = [100.0, 0.0] * 15
    mean, low, high = statistics.mean_per_token_ci(agreement, [100] * 30)
    assert mean == 0.5
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 29) * 0.093, rel=0.1)


def test_the_interval_per_token_leans_with_the_skew():
    # exponential by document: a sample that missed the tail has to reach further up than down
    mean, low, high = statistics.mean_per_token_ci(np.random.default_rng(8).exponential(size=20), [1] * 20)
    assert high - mean > 1.2 * (mean - low)


def test_start_variance_worked():
    # two starts of a variant at two points, logarithms 0.00, 0.02 and 0.04, 0.10: the starts' means are 0.01 and 0.07,
    # variance 0.06^2 / 2 = 0.0018 (1 degree); left over: 0.02 more apart at the second point, +-0.01 in each of 4 cells,
    # 4 * 0.0001 over (2 - 1)(2 - 1), times (2 - 1) / 2: 0.0002 (1 degree)
    logs = [[0.00, 0.02], [0.04, 0.10]]
    variance, freedom = statistics.start_variance([logs])
    assert variance == pytest.approx(0.0020)
    assert freedom == pytest.approx(0.002**2 / (0.0018**2 + 0.0002**2))
    # one point: the plain variance of its starts
    assert statistics.start_variance([[[0.0], [0.1], [0.2]]]) == (pytest.approx(0.01), pytest.approx(2))
    assert statistics.start_variance([[[0.0, 1.0]]]) == (None, 0)
    # two variants are pooled: the mean of their variances, and twice the degrees of freedom
    assert statistics.start_variance([logs, logs]) == (pytest.approx(variance), pytest.approx(2 * freedom))
    assert statistics.start_variance([[[0.0, 1.0], [0.0, 1.0]]]) == (0.0, 2.0)


def test_a_gain_within_the_starts_variation_is_none():
    # the baseline's two starts are 0.06 apart (variance 0.0018, one degree, t = 12.706), the other's one lies 0.05 below
    spread = statistics.start_variance([[[0.00], [0.06]]])
    gain, low, high = statistics.gain_between_starts([0.00, 0.06], [-0.02], spread)
    half = 12.706 * math.sqrt(0.0018 * (1 / 2 + 1 / 1))
    assert gain == pytest.approx(math.exp(0.05))
    assert (low, high) == pytest.approx((math.exp(0.05 - half), math.exp(0.05 + half)), rel=1e-3)
    assert statistics.gain_between_starts([0.0], [-0.02], (None, 0))[1:] == (None, None)
