"""Pairs of right and wrong answers: worked arithmetic, statsmodels where it has the function, published examples."""

import math

import numpy as np
import pytest
from quantbench import paired
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (1, 1), (0, 1), (90, 100), (183, 200), (1, 1319)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_agrees_with_statsmodels(successes, n, confidence):
    expected = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    assert paired.wilson(successes, n, confidence) == pytest.approx(expected, abs=1e-12)


def test_wilson_worked():
    # p = 0.5, n = 4, z = 1.96: centre 0.5, half = 1.96 / (1 + 3.8416/4) * sqrt(1/16 + 3.8416/64) = 1 * 0.35
    low, high = paired.wilson(2, 4)
    assert (low, high) == pytest.approx((0.15, 0.85), abs=1e-3)
    assert paired.wilson(10, 10)[1] == 1.0
    assert paired.wilson(0, 10)[0] == 0.0
    with pytest.raises(ValueError, match="no share"):
        paired.wilson(0, 0)
    with pytest.raises(ValueError, match="confidence"):
        paired.wilson(1, 2, 95)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (6, 0), (5, 2), (9, 9), (40, 12), (0, 30)])
def test_mcnemar_agrees_with_statsmodels_and_scipy(lost, won):
    baseline = [True] * lost + [False] * won + [True] * 50 + [False] * 7
    other = [False] * lost + [True] * won + [True] * 50 + [False] * 7
    assert paired.discordant(baseline, other) == (lost, won)
    assert paired.mcnemar_exact(lost, won) == pytest.approx(mcnemar([[50, lost], [won, 7]], exact=True).pvalue)
    assert paired.mcnemar_exact(lost, won) == paired.mcnemar_exact(won, lost)
    if lost + won:
        assert paired.mcnemar_exact(lost, won) == pytest.approx(stats.binomtest(lost, lost + won).pvalue)


def test_mcnemar_worked():
    # 6 pairs differ, all one way: 2 * (1/2)^6 = 0.03125; 5 pairs: 0.0625, so no 5 pairs are ever significant at 5 %
    assert paired.mcnemar_exact(6, 0) == pytest.approx(0.03125)
    assert paired.mcnemar_exact(5, 0) == pytest.approx(0.0625)
    assert paired.mcnemar_exact(0, 0) == 1.0
    with pytest.raises(ValueError, match="equally many"):
        paired.discordant([True], [True, False])


# --- intervals --------------------------------------------------------------------------------------------------------


def test_difference_interval_of_published_examples():
    # Fagerland, Lydersen and Laake 2014 (doi 10.1002/sim.6148), children before and after stem cell transplantation: of 21
    # pairs 1 and 7 differ; Tango -0.517 to -0.026
    assert paired.difference_ci(7, 1, 21) == pytest.approx((-6 / 21, -0.517, -0.026), abs=5e-4)


def test_difference_interval_where_no_answer_changed():
    # d^2 n^2 = z^2 n d (1 - d): d = z^2 / (n + z^2) = 3.8415 / 103.8415 = 3.7 points. The bootstrap would say 0 to 0.
    assert paired.difference_ci(0, 0, 100) == pytest.approx((0.0, -0.036994, 0.036994), abs=1e-6)
    # and that is far from "equal within 1 point", which takes 3.8415 * 0.99 / 0.01 = 381 questions
    assert paired.difference_ci(0, 0, 380)[2] > 0.01 > paired.difference_ci(0, 0, 381)[2]


def test_difference_interval_edges():
    # symmetric; all lost: the loss is 1, the interval ends there
    difference, low, high = paired.difference_ci(12, 4, 200)
    assert paired.difference_ci(4, 12, 200) == pytest.approx((-difference, -high, -low))
    assert paired.difference_ci(10, 0, 10)[:2] == (-1.0, -1.0)
    # of many pairs it is Wald's: -0.4 points +- 1.96 sqrt((0.02 - 0.004^2) / 20000) = +- 0.196 points
    assert paired.difference_ci(240, 160, 20_000) == pytest.approx((-0.004, -0.00596, -0.00204), abs=3e-5)
    with pytest.raises(ValueError, match="no part"):
        paired.difference_ci(3, 3, 5)


def test_a_significant_difference_leaves_zero_out_of_its_interval():
    # the exact test is the stricter of the two, so that "worse by x" never stands beside an interval that spans 0
    for lost in range(120):
        for won in range(lost):
            if paired.mcnemar_exact(lost, won) < 0.05:
                assert paired.difference_ci(lost, won, 400)[2] < 0, (lost, won)


def test_recovery_of_a_published_example():
    # the same children: right before 8, after 2, both 1; ratio 0.25, Bonett and Price 0.068 to 0.923
    assert paired.recovery_ci(8, 2, 1) == pytest.approx((0.25, 0.068, 0.923), abs=5e-4)


def test_recovery_worked():
    # 360 right and 352 right, 350 in both: 352 / 360 = 97.8 %, and some of it could be chance
    recovery, low, high = paired.recovery_ci(360, 352, 350)
    assert recovery == pytest.approx(0.9778, abs=1e-4)
    assert low < recovery < 1 < high + 0.01
    # standard error of the logarithm (delta method): sqrt((10 + 2) / (360 * 352)) = 0.00973
    assert math.log(high / low) / 2 == pytest.approx(1.96 * 0.00973, rel=0.1)
    # nothing changed: 1, with an interval
    recovery, low, high = paired.recovery_ci(90, 90, 90)
    assert low < 1 < high and recovery == 1
    assert paired.recovery_ci(0, 3, 0) == (None, None, None)


def coverage(psi, difference, n, interval, rounds, truth):
    """The share of intervals that hold the truth, of tables drawn with psi * n answers changed on average."""
    rng, held = np.random.default_rng(17), 0
    shares = [(psi - difference) / 2, (psi + difference) / 2, 0.6 - (psi + difference) / 2, 0]
    shares[3] = 1 - sum(shares)
    for lost, won, both, _ in rng.multinomial(n, shares, size=rounds):
        _, low, high = interval(int(lost), int(won), int(both))
        held += low <= truth <= high
    return held / rounds


@pytest.mark.parametrize(("psi", "difference", "n"), [(0.02, 0.0, 60), (0.05, -0.03, 100), (0.2, 0.05, 400)])
def test_intervals_hold_what_they_promise(psi, difference, n):
    # 600 rounds at 95 %: a standard error of 0.9 points; three of them below
    share = coverage(psi, difference, n, lambda lost, won, _: paired.difference_ci(lost, won, n), 600, difference)
    assert share > 0.95 - 0.027
    base = 0.6 - difference
    ratio = coverage(
        psi, difference, n, lambda lost, won, both: paired.recovery_ci(both + lost, both + won, both), 600, 0.6 / base
    )
    assert ratio > 0.95 - 0.027


# --- what a number of questions can show ------------------------------------------------------------------------------


def test_power_worked():
    # 6 questions, all lost in truth: p = 2 / 2^6 = 0.031, shown for certain; 5: 0.0625, never
    assert paired.power_of_loss(6, 1.0, 1.0) == pytest.approx(1.0)
    assert paired.power_of_loss(5, 1.0, 1.0) == 0.0
    # 7 questions, each lost with chance 1/2 and none won: shown where 6 or 7 are lost: (7 + 1) / 2^7 = 6.25 %
    assert paired.power_of_loss(7, 0.5, 0.5) == pytest.approx(8 / 128)


@pytest.mark.parametrize(("n", "psi", "loss"), [(60, 0.3, 0.1), (100, 0.1, 0.09), (400, 0.15, 0.05)])
def test_power_is_what_simulation_finds(n, psi, loss):
    rng = np.random.default_rng(5)
    lost, won, _ = rng.multinomial(n, [(psi + loss) / 2, (psi - loss) / 2, 1 - psi], size=4000).T
    found = np.mean([paired.mcnemar_exact(a, b) < 0.05 and a > b for a, b in zip(lost, won, strict=True)])
    # 4000 trials: a standard error of 0.8 points at most
    assert paired.power_of_loss(n, loss, psi) == pytest.approx(found, abs=0.024)


def test_one_hundred_questions_cannot_see_less_than_nine_points():
    d = paired.smallest_difference(100)
    assert paired.power_of_loss(100, d, 0.1) >= 0.8 > paired.power_of_loss(100, d - 0.001, 0.1)
    assert d == pytest.approx(0.09, abs=0.005)
    line = paired.smallest_difference_line("gsm8k", 100)
    assert line == (
        "gsm8k: 100 questions cannot see less than 9 points (80 % chance, 95 % confidence, 10 % of answers changed)"
    )
    assert paired.smallest_difference_line("arc", 5) == "arc: 5 questions cannot show any loss"


def test_the_smallest_difference_follows_from_what_it_is_made_of():
    by_n = [paired.smallest_difference(n) for n in (20, 100, 400, 1319, 14042)]
    assert by_n == sorted(by_n, reverse=True)
    # four times the questions, half the difference, about: Connor's d goes with 1 / sqrt(n)
    assert by_n[2] / paired.smallest_difference(1600) == pytest.approx(2, rel=0.05)
    # more changed answers hide more, and so do more schemes
    assert paired.smallest_difference(400, 0.05) < paired.smallest_difference(400, 0.2)
    assert paired.smallest_difference(400, comparisons=14) > paired.smallest_difference(400)
    assert "5 points, 6 points where 14 schemes are compared" in paired.smallest_difference_line("gsm8k", 400, 14)
    assert paired.smallest_difference(5) is None
    assert "and nothing where 14" in paired.smallest_difference_line("gsm8k", 7, 14)


def test_questions_needed_worked():
    # psi 0.1, d 0.05: (1.95996 sqrt(0.1) + 0.84162 sqrt(0.1 - 0.0025))^2 / 0.0025
    #               = (0.61979 + 0.26280)^2 / 0.0025 = 0.77896 / 0.0025 = 311.6
    assert paired.questions_needed(0.05, 0.1) == 312
    assert paired.questions_needed(-0.05, 0.1) == 312
    assert paired.questions_needed(0.0, 0.1) is None
    # no pair may differ less often than the difference itself
    assert paired.questions_needed(0.05, 0.0) == paired.questions_needed(0.05, 0.05)
    assert paired.questions_needed(0.05, 0.1, comparisons=10) > 312


def test_questions_needed_to_call_it_equal():
    # no difference, 4 % of answers changed, within 1 point: (1.95996 + 1.28155)^2 * 0.04 / 0.0001 = 4203
    assert paired.questions_needed(0.0, 0.04, margin=0.01) == 4203
    # nothing changed: 1.95996^2 * 0.99 / 0.01 = 380.3, as in the interval above
    assert paired.questions_needed(0.0, 0.0, margin=0.01) == 381
    # half a point off: what is left of the margin is half as wide, (3.24151)^2 (0.04 - 0.000025) / 0.000025 = 16801; to
    # show the half point is cheaper: (1.95996 * 0.2 + 0.84162 * sqrt(0.039975))^2 / 0.000025 = 12555
    assert paired.questions_needed(0.005, 0.04, margin=0.01) == pytest.approx(12555, abs=5)
    # beyond the margin only the difference can be shown
    assert paired.questions_needed(0.02, 0.04, margin=0.01) == paired.questions_needed(0.02, 0.04)


def test_so_many_questions_do_tell():
    n = paired.questions_needed(0.0, 0.04, margin=0.01)
    lost, won, _ = np.random.default_rng(2).multinomial(n, [0.02, 0.02, 0.96], size=400).T
    inside = [
        max(-low, high) < 0.01
        for low, high in (paired.difference_ci(int(a), int(b), n)[1:] for a, b in zip(lost, won, strict=True))
    ]
    # 80 % promised, a standard error of 2 points
    assert np.mean(inside) == pytest.approx(0.8, abs=0.06)
