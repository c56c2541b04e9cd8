"""Numbers to words: every branch of the one function that says what a difference means."""

import pytest
from quantbench.verdict import (
    BETTER,
    EQUAL,
    NO_DIFFERENCE,
    UNCLEAR,
    WORSE,
    about,
    percent,
    ratio_words,
    verdict,
)


@pytest.mark.parametrize(
    ("difference", "low", "high", "p", "kind", "words"),
    [
        (-5.0, -8.04, -1.96, 0.001, WORSE, "worse by 5.0 points [2.0, 8.0]"),
        (5.0, 2.0, 8.0, 0.001, BETTER, "better by 5.0 points [2.0, 8.0]"),
        (-0.2, -0.9, 0.5, 0.6, EQUAL, "equal within 1 point at 95 %"),
        # a loss that is there for certain, and smaller than what the study calls one
        (-0.5, -0.9, -0.1, 0.01, EQUAL, "equal within 1 point at 95 %"),
        (0.0, -1.0, 1.0, 1.0, EQUAL, "equal within 1 point at 95 %"),
        (-1.0, -4.0, 2.0, 0.6, UNCLEAR, "cannot tell (needs about 1,300 questions)"),
        # one end outside is enough: it may be better by more than a point
        (0.4, -0.3, 1.1, 0.3, UNCLEAR, "cannot tell (needs about 1,300 questions)"),
        # alone it would be a loss, among the others it may be chance
        (
            -5.0,
            -8.0,
            -2.0,
            0.08,
            UNCLEAR,
            "cannot tell (among so many schemes it may be chance; needs about 1,300 questions)",
        ),
        (0.0, None, None, 1.0, UNCLEAR, "cannot tell (needs about 1,300 questions)"),
        # no test: the interval decides
        (-5.0, -8.0, -2.0, None, WORSE, "worse by 5.0 points [2.0, 8.0]"),
    ],
)
def test_verdicts(difference, low, high, p, kind, words):
    assert verdict(difference, low, high, margin=1.0, p=p, needed=1234) == (kind, words)


def test_no_difference_in_a_small_sample_is_not_equality():
    # 20 questions, none changed: the interval is +-16 points
    assert verdict(0.0, -16.1, 16.1, margin=1.0, p=1.0, needed=381).kind == UNCLEAR


def test_noise_between_starts_is_no_lack_of_questions():
    said = verdict(0.0, -0.5, 3.1, margin=1.0, p=1.0, needed=3600, noisy=True)
    assert said == (UNCLEAR, "cannot tell (starts of the baseline differ by as much)")


def test_who_has_nothing_cannot_lose_it():
    said = verdict(0.0, -0.3, 0.3, margin=1.0, p=1.0, most=0.5)
    assert said == (UNCLEAR, "cannot tell (the baseline itself has 0.5 points: there is nothing to lose)")
    assert verdict(0.0, -0.3, 0.3, margin=1.0, p=1.0, most=1.5).kind == EQUAL


def test_the_words_name_margin_confidence_and_unit():
    assert verdict(0.1, -1.0, 1.2, margin=2.5, confidence=0.9).words == "equal within 2.5 points at 90 %"
    assert verdict(0.1, -0.2, 0.3, margin=1.0, unit="%", of="documents").words == "equal within 1 % at 95 %"
    assert verdict(0.1, -9, 9, margin=1.0, unit="%", of="documents").words == "cannot tell (needs more documents)"
    assert verdict(0.0, 0.0, 0.0, margin=0.0).kind == UNCLEAR


@pytest.mark.parametrize(
    ("needed", "words"),
    [(None, "more"), (7, "about 7"), (381, "about 390"), (1300, "about 1,300"), (12555, "about 13,000")],
)
def test_about(needed, words):
    assert about(needed) == words


def test_ratio_words():
    assert ratio_words(1.2, 1.1, 1.3) == "better by 20.0 %"
    assert ratio_words(0.8, 0.7, 0.9) == "worse by 20.0 %"
    assert ratio_words(1.2, 0.9, 1.5) == ratio_words(1.2, 1.0, 1.5) == NO_DIFFERENCE
    assert ratio_words(1.2, None, None) == "cannot tell (needs more repeats)"
    assert percent(0.75) == "25.0 %"
