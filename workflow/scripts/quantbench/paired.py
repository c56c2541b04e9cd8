"""Two schemes on the same questions: tests, intervals and sample sizes for pairs of right and wrong answers.

Baseline first, always. Of n questions `lost` are right in the baseline only, `won` in the other only; the difference is
(won - lost) / n, and psi = (won + lost) / n is the share of answers that changed.
"""

import math

import numpy as np
from scipy.special import bdtr, bdtrc, bdtrik, gammaln, ndtri, xlog1py, xlogy

# What the plan assumes before anything is measured: one answer in ten turns from right to wrong or back ("flips", Dutta
# et al. 2024, arXiv:2407.09141). The report puts the share that was observed in its place.
ASSUMED_CHANGED = 0.1


def discordant(baseline_correct, correct):
    """Pairs that differ: (right in the baseline only, right in the other only)."""
    before, after = np.asarray(baseline_correct, bool), np.asarray(correct, bool)
    if before.ndim != 1 or len(before) == 0 or before.shape != after.shape:
        raise ValueError(f"pairs need equally many answers, not {before.shape} and {after.shape}, and at least one")
    return int(np.sum(before & ~after)), int(np.sum(~before & after))


def mcnemar_exact(lost, won):
    """Two-sided exact McNemar test (McNemar 1947, binomial form): the p-value of "neither is better".

    Of the n pairs that differ, either side wins with chance 1/2: p = min(1, 2 P(Binomial(n, 1/2) <= the smaller side)).
    No pair differs: p = 1.
    """
    if lost + won == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(lost, won), lost + won, 0.5)))


def difference_ci(lost, won, n, confidence=0.95):
    """(won - lost) / n and its score interval (Tango 1998): (difference, low, high).

    All d with |won - lost - n d| <= z sqrt(n (2 q + d (1 - d))), where q, the share lost, is likeliest given d:
    q = (sqrt(B^2 + 8 n lost d (1 - d)) - B) / 4n,  B = (2n - won + lost) d - won - lost.
    Where no pair differs it is +-z^2 / (n + z^2), unlike a bootstrap of the sample, which has no width there.
    """
    if n < 1 or min(lost, won) < 0 or lost + won > n:
        raise ValueError(f"{lost} lost and {won} won are no part of {n} pairs")
    z, estimate = z_two_sided(confidence), (won - lost) / n

    def distance(d):
        b = (2 * n - won + lost) * d - won - lost
        q = (math.sqrt(b * b + 8 * n * lost * d * (1 - d)) - b) / (4 * n)
        # Rounding may leave a variance of -1e-18 at the ends.
        spread = math.sqrt(max(n * (2 * q + d * (1 - d)), 0.0))
        return abs(won - lost - n * d) - z * spread

    return estimate, _root(distance, estimate, -1.0), _root(distance, estimate, 1.0)


def _root(distance, inside, end):
    """Where `distance` turns positive between `inside` and `end`, by bisection; the end where it never does."""
    for _ in range(60):
        middle = (inside + end) / 2
        inside, end = (inside, middle) if distance(middle) > 0 else (middle, end)
    return end


def recovery_ci(baseline_right, right, both, confidence=0.95):
    """right / baseline_right on the same questions, and its interval (Bonett and Price 2006): (recovery, low, high).

    `both` counts the questions that both answer right. Either side gets a Wilson interval within the questions that any
    of the two answers right, at a z that allows for the pairing; the ends are low/high and high/low of the two. None
    thrice where the baseline answers nothing right; high is None where its own interval reaches 0.
    """
    if not 0 <= both <= min(baseline_right, right):
        raise ValueError(f"{both} right in both, of {baseline_right} and {right}")
    if baseline_right == 0:
        return None, None, None
    any_right = baseline_right + right - both
    changed = baseline_right + right - 2 * both
    mine, theirs = right + 1, baseline_right + 1
    joint = math.sqrt((changed + 2) / (mine * theirs))
    apart = sum(math.sqrt((1 - side / (any_right + 2)) / side) for side in (mine, theirs))
    z = z_two_sided(confidence) * joint / apart
    (low, high), (base_low, base_high) = (_wilson(side, any_right, z) for side in (right, baseline_right))
    return right / baseline_right, low / base_high, high / base_low if base_low > 0 else None


def wilson(successes, n, confidence=0.95):
    """Wilson's score interval of a share (Wilson 1927): (low, high), within [0, 1] also at 0 and n successes.

    centre = (p + z^2 / 2n) / (1 + z^2 / n),  half = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share")
    return _wilson(successes, n, z_two_sided(confidence))


def _wilson(successes, n, z):
    p, shrink = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Exact by algebra at the ends; rounding would leave 1e-17 there.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


# --- what a number of questions can show ----------------------------------------------------------------------------


def power_of_loss(n, loss, changed_share, confidence=0.95):
    """The chance that the exact test on n pairs shows a loss of `loss`, `changed_share` >= loss of the answers changed.

    The number of changed answers K is Binomial(n, psi); of those Binomial(K, (psi + loss) / 2 psi) are lost. Summed over
    every K that is not out of reach (8 standard deviations); shown means: p < 1 - confidence, and in that direction.
    """
    psi, half_alpha = min(max(changed_share, loss), 1.0), (1 - confidence) / 2
    mean, deviation = n * psi, math.sqrt(n * psi * (1 - psi))
    k = np.arange(max(1, math.floor(mean - 8 * deviation)), min(n, math.ceil(mean + 8 * deviation)) + 1)
    log_weight = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1) + xlogy(k, psi) + xlog1py(n - k, -psi)
    # The most wins among k changed answers that are still too few for chance: the largest c with P(<= c) < alpha / 2.
    wins = np.floor(np.nan_to_num(bdtrik(half_alpha, k, 0.5), nan=-1.0))
    wins = np.where((wins >= 0) & (bdtr(np.maximum(wins, 0), k, 0.5) >= half_alpha), wins - 1, wins)
    wins = np.where(bdtr(np.maximum(wins, 0), k, 0.5) < half_alpha, wins, -1)
    lost_share = min(1.0, (psi + loss) / (2 * psi))
    # At least k - c lost, that is, more than k - c - 1.
    shown = np.where(wins >= 0, bdtrc(np.maximum(k - wins - 1, 0), k, lost_share), 0.0)
    return float(np.sum(np.exp(log_weight) * shown))


def smallest_difference(n, changed_share=ASSUMED_CHANGED, comparisons=1, confidence=0.95, power=0.8):
    """The least loss that the exact test on n pairs shows with chance `power`; None where even losing all would hide.

    `changed_share` of the answers change, or as many as the loss itself where that is more. `comparisons` schemes are
    compared with one baseline: the first of them has to pass Holm's level, alpha / comparisons.
    """
    level = 1 - (1 - confidence) / comparisons
    if power_of_loss(n, 1.0, 1.0, level) < power:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        loss = (low + high) / 2
        low, high = (low, loss) if power_of_loss(n, loss, changed_share, level) >= power else (loss, high)
    return high


def smallest_difference_line(task, n, comparisons=1, changed_share=ASSUMED_CHANGED, confidence=0.95, power=0.8):
    """What n questions cannot see, in one line for the plan: "gsm8k: 100 questions cannot see less than 9 points (...)"."""
    alone = smallest_difference(n, changed_share, 1, confidence, power)
    among = smallest_difference(n, changed_share, comparisons, confidence, power)
    if alone is None:
        return f"{task}: {n} questions cannot show any loss"
    reach = f"{task}: {n} questions cannot see less than {_points(alone)} points"
    if comparisons > 1:
        hardest = "and nothing" if among is None else f"{_points(among)} points"
        reach += f", {hardest} where {comparisons} schemes are compared"
    return f"{reach} ({100 * power:g} % chance, {100 * confidence:g} % confidence, {100 * changed_share:g} % of answers changed)"


def _points(share):
    """0.0875 -> "9"; below 3 points one digit is told: 0.0214 -> "2.1"."""
    return f"{100 * share:.0f}" if share >= 0.03 else f"{100 * share:.1f}"


def questions_needed(difference, changed_share, margin=0.0, comparisons=1, confidence=0.95, power=0.8):
    """About how many pairs would tell, were the truth what was observed; None where no number would.

    Tell means to show the difference, or, where it is below `margin`, that it lies within the margin: the fewer of
        (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2                     Connor 1987, formula 2; z_a at alpha / comparisons
        (z_a + z_c)^2 (psi - d^2) / (margin - |d|)^2                      both ends of the interval inside, z_c at 1/2 + power/2
    the second at least z_a^2 (1 - margin) / margin, what the interval takes where no answer changes (`difference_ci`).
    """
    d = abs(difference)
    psi, found = max(changed_share, d), []
    if d:
        z_a, z_b = z_two_sided(1 - (1 - confidence) / comparisons), float(ndtri(power))
        found.append((z_a * math.sqrt(psi) + z_b * math.sqrt(psi - d * d)) ** 2 / (d * d))
    if d < margin:
        z_a, z_c = z_two_sided(confidence), z_two_sided(power)
        within = (z_a + z_c) ** 2 * (psi - d * d) / (margin - d) ** 2
        found.append(max(within, z_a * z_a * (1 - margin) / margin))
    return math.ceil(min(found)) if found else None


def z_two_sided(confidence):
    """The z of a two-sided normal interval: 0.95 -> 1.96. Raises ValueError for what is no share."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a share such as 0.95, not {confidence}")
    return float(ndtri(0.5 + confidence / 2))
