"""Statistics against worked arithmetic, and against statsmodels and scipy where those have the function."""

import itertools
import math
import time

import numpy as np
import pytest
from quantbench import statistics
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

REPEATS = {"least": 3, "most": 10, "relative_ci": 0.05, "confidence": 0.95}


def test_median_of_one_value_has_no_interval():
    assert statistics.median_ci([2.5]) == (2.5, None, None)


def test_median_of_equal_values_has_a_point_interval():
    assert statistics.median_ci([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_median_interval_of_three_values_reaches_both_ends():
    # a resample has median 1 when at least two of its three draws are 1: 3 (1/3)^2 (2/3) + (1/3)^3 = 7/27 > 2.5 %
    assert statistics.median_ci([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_median_interval_follows_the_order_statistics():
    # 101 values 0..100: the rank of a resample's median has standard deviation sqrt(101)/2 = 5.02: 50 +- 1.96 * 5.02
    median, low, high = statistics.median_ci(range(101))
    assert median == 50
    assert low == pytest.approx(40, abs=1)
    assert high == pytest.approx(60, abs=1)


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
    # interval [0.9, 1.1]: width 0.2 of a median of 1, more than 5 %
    assert not statistics.narrow_enough([0.9, 1.0, 1.1], REPEATS)
    # interval [0.98, 1.02]: width 0.04
    assert statistics.narrow_enough([0.98, 1.0, 1.02], REPEATS)
    # interval [0.97, 1.03]: half of its width is below 5 %, the whole is not
    assert not statistics.narrow_enough([0.97, 1.0, 1.03], REPEATS)
    assert statistics.narrow_enough([1.0, 2.0] * 5, REPEATS)  # ten values, however wide
    assert not statistics.narrow_enough([1.0], REPEATS | {"least": 1})  # one value shows no spread


def test_ratio_of_medians():
    assert statistics.ratio_of_medians_ci([2.0, 2.0], [3.0, 3.0]) == (1.5, 1.5, 1.5)
    assert statistics.ratio_of_medians_ci([2.0], [3.0, 3.0]) == (1.5, None, None)
    # baseline in [1, 2], values in [4, 6]: the ratio is never outside 4/2 and 6/1
    ratio, low, high = statistics.ratio_of_medians_ci([1.0, 1.5, 2.0], [4.0, 5.0, 6.0])
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
    ratio, low, high = statistics.ratio_of_quantiles_ci(range(1, 102), range(2, 203, 2), 0.99)
    assert ratio == pytest.approx(2)
    assert low < 2 < high


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (1, 1), (0, 1), (90, 100), (183, 200), (1, 1319)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_agrees_with_statsmodels(successes, n, confidence):
    expected = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    assert statistics.wilson(successes, n, confidence) == pytest.approx(expected, abs=1e-12)


def test_wilson_worked():
    # p = 0.5, n = 4, z = 1.96: centre 0.5, half = 1.96 / (1 + 3.8416/4) * sqrt(1/16 + 3.8416/64) = 1 * 0.35
    low, high = statistics.wilson(2, 4)
    assert (low, high) == pytest.approx((0.15, 0.85), abs=1e-3)
    assert statistics.wilson(10, 10)[1] == 1.0
    assert statistics.wilson(0, 10)[0] == 0.0
    with pytest.raises(ValueError, match="no share"):
        statistics.wilson(0, 0)
    with pytest.raises(ValueError, match="confidence"):
        statistics.wilson(1, 2, 95)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (6, 0), (5, 2), (9, 9), (40, 12), (0, 30)])
def test_mcnemar_agrees_with_statsmodels(lost, won):
    baseline = [True] * lost + [False] * won + [True] * 50 + [False] * 7
    other = [False] * lost + [True] * won + [True] * 50 + [False] * 7
    expected = mcnemar([[50, lost], [won, 7]], exact=True).pvalue
    assert statistics.mcnemar_exact(baseline, other) == pytest.approx(expected)
    assert statistics.mcnemar_exact(other, baseline) == pytest.approx(expected)
    assert statistics.discordant(baseline, other) == (lost, won)


def test_mcnemar_worked():
    # 6 pairs differ, all one way: 2 * (1/2)^6 = 0.03125; 5 pairs: 0.0625, so no 5 pairs are ever significant at 5 %
    assert statistics.mcnemar_exact([True] * 6, [False] * 6) == pytest.approx(0.03125)
    assert statistics.mcnemar_exact([True] * 5, [False] * 5) == pytest.approx(0.0625)
    assert statistics.mcnemar_exact([True] * 9, [True] * 9) == 1.0
    with pytest.raises(ValueError, match="equally many"):
        statistics.mcnemar_exact([True], [True, False])


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
    # pairs with differences 0, 1, ..: all n^n resamples by hand, by counts (3 values) and by indices (4 values)
    means = [sum(draw) / n for draw in itertools.product(range(n), repeat=n)]
    expected = np.quantile(means, [0.1, 0.9])
    assert statistics.paired_bootstrap_ci([0] * n, range(n), 0.8)[1:] == pytest.approx(tuple(expected))


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
    assert (low, high) == pytest.approx((1.0, math.exp(0.1)))


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03], [0.5, 0.5], [0.001], [1.0, 0.9, 0.02, 0.02, 0.3], []])
def test_holm_agrees_with_statsmodels(p_values):
    expected = multipletests(p_values, method="holm")[1] if p_values else []
    assert statistics.holm(p_values) == pytest.approx(list(expected))


def test_holm_worked():
    # 0.01 * 3 = 0.03; 0.03 * 2 = 0.06; 0.04 * 1 = 0.04, raised to the 0.06 before it
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_questions_needed_worked():
    # psi 0.1, d 0.05: (1.95996 sqrt(0.1) + 0.84162 sqrt(0.1 - 0.0025))^2 / 0.0025
    #               = (0.61979 + 0.26280)^2 / 0.0025 = 0.77896 / 0.0025 = 311.6
    assert statistics.questions_needed(0.05, 0.1) == 312
    assert statistics.questions_needed(-0.05, 0.1) == 312
    assert statistics.questions_needed(0.0, 0.1) is None
    # no pair may differ less often than the difference itself
    assert statistics.questions_needed(0.05, 0.0) == statistics.questions_needed(0.05, 0.05)


@pytest.mark.parametrize(("n", "share"), [(200, 0.05), (400, 0.1), (1319, 0.08), (60, 0.5)])
def test_smallest_detectable_difference_inverts_questions_needed(n, share):
    d = statistics.smallest_detectable_difference(n, share)
    assert statistics.questions_needed(d, share) in (n, n + 1)


def test_smallest_detectable_difference_when_no_pair_differs():
    # every differing pair on one side: d = (1.96 + 0.8416 sqrt(1 - d))^2 / 200 -> 0.0388
    d = statistics.smallest_detectable_difference(200, 0.0)
    assert d == pytest.approx((1.95996 + 0.84162 * math.sqrt(1 - d)) ** 2 / 200, rel=1e-4)
    assert d == pytest.approx(0.0388, abs=1e-4)
    # three questions cannot show any difference: 3 < 1.96^2
    assert statistics.smallest_detectable_difference(3, 0.1) is None


def test_smallest_detectable_difference_has_the_power_it_claims():
    n, share = 400, 0.15
    d = statistics.smallest_detectable_difference(n, share)
    rng = np.random.default_rng(5)
    lost, won, _ = rng.multinomial(n, [(share + d) / 2, (share - d) / 2, 1 - share], size=400).T
    found = []
    for losses, wins in zip(lost, won, strict=True):
        p = statistics.mcnemar_exact([True] * losses + [False] * wins, [False] * losses + [True] * wins)
        found.append(p < 0.05)
    # 80 % by the approximation; the exact test is somewhat weaker; 400 trials have a standard error of 2 points
    assert 0.68 < np.mean(found) < 0.86
