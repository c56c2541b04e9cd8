"""Numbers to words, in one place: equal within, better by, worse by, or cannot tell. Pure; decides nothing else.

Of a difference with its interval, higher being better, in what the reader sees (percentage points, or percent):

    equal      the whole interval lies within +-margin: whatever the difference is, it is no larger than that
    worse      the interval leaves 0 out, and the test (where there is one) is significant among all schemes compared
    better     likewise, above 0
    unclear    neither: the sample is too small to say which, and the words say how large one would have to be

"Equal" is tested, not what is left when no difference was found: no significant difference among 20 questions is unclear.
Both ends of the two-sided interval within the margin are the two one-sided tests (Schuirmann 1987), each at half of
1 - confidence, stricter than the usual one; a reader can check it against the interval that is shown.
"""

from typing import NamedTuple

EQUAL, BETTER, WORSE, UNCLEAR = "equal", "better", "worse", "unclear"
NO_DIFFERENCE = "no significant difference"

# How large a loss is none: that of 99 % of the reference's score, the quality target of MLPerf Inference's closed division,
# which is one point of an accuracy of 100 %, and one percent of a perplexity.
MARGINS = {"accuracy": 0.01, "perplexity": 0.01}


class Verdict(NamedTuple):
    """`kind` is one of the four above, `words` what a reader is told."""

    kind: str
    words: str


def verdict(
    difference,
    low,
    high,
    *,
    margin,
    confidence=0.95,
    p=None,
    needed=None,
    noisy=False,
    most=None,
    unit="points",
    of="questions",
):
    """The verdict on a difference and its interval, all in `unit`s, as is `margin`. See above.

    p        of a test of no difference, adjusted for all schemes compared; None: the interval alone decides
    needed   how many `of` would tell; None where nobody can say
    noisy    as many would tell as there are, were it not for the baseline's own starts, which differ too much
    most     the most that could be lost: a baseline that gets nothing right has nothing to lose, and is equal to nothing
    """
    enough = "starts of the baseline differ by as much" if noisy else f"needs {about(needed)} {of}"
    if low is None or high is None:
        return Verdict(UNCLEAR, f"cannot tell ({enough})")
    alpha = 1 - confidence
    apart = low > 0 or high < 0
    if margin and -margin <= low and high <= margin:
        if most is not None and most <= margin:
            return Verdict(
                UNCLEAR, f"cannot tell (the baseline itself has {most:.1f} {unit}: there is nothing to lose)"
            )
        return Verdict(EQUAL, f"equal within {number(margin)} {_unit(margin, unit)} at {100 * confidence:g} %")
    if apart and (p is None or p < alpha):
        ends = (low, high) if difference > 0 else (-high, -low)
        size = f"{abs(difference):.1f} {unit} [{ends[0]:.1f}, {ends[1]:.1f}]"
        return Verdict(BETTER if difference > 0 else WORSE, f"{'better' if difference > 0 else 'worse'} by {size}")
    if apart:
        return Verdict(UNCLEAR, f"cannot tell (among so many schemes it may be chance; {enough})")
    return Verdict(UNCLEAR, f"cannot tell ({enough})")


def about(needed):
    """A number of questions as a person says it, two digits of it, never less: 1234 -> "about 1,300"."""
    if needed is None:
        return "more"
    step = 10 ** max(len(str(needed)) - 2, 0)
    return f"about {-(-needed // step) * step:,}"


def number(value):
    """1.0 -> "1", 0.5 -> "0.5"."""
    return f"{value:g}"


def _unit(value, unit):
    return unit.removesuffix("s") if value == 1 else unit


def ratio_words(ratio, low, high, needs="more repeats"):
    """What an interval of a ratio says, higher being better: "better by", "worse by", no difference, or cannot tell.

    For speeds, of which no margin is asked. No interval (None): "cannot tell (needs ...)". One that touches 1 spans it.
    """
    if low is None or high is None:
        return f"cannot tell (needs {needs})"
    if low <= 1 <= high:
        return NO_DIFFERENCE
    return f"{'better' if low > 1 else 'worse'} by {percent(ratio)}"


def percent(ratio):
    """A ratio to 1 as the change it is: 1.25 -> "25.0 %", 0.8 -> "20.0 %"."""
    return f"{abs(ratio - 1) * 100:.1f} %"
