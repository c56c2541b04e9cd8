"""Lengths of answers beside the baseline's."""

import pytest
from quantbench.answer_lengths import compare_lengths


def answers(lengths, most=100):
    return [{"question": n, "output_tokens": tokens, "cut_off": tokens == most} for n, tokens in enumerate(lengths)]


def test_an_equal_scheme_is_not_named():
    found = compare_lengths(answers([40, 50, 60] * 20), answers([41, 50, 59] * 20))
    # (41 + 50 + 59) / (40 + 50 + 60) = 1
    assert found["ratio"] == pytest.approx(1) and found["tokens"] == found["baseline_tokens"] == 50
    assert found["kind"] is None and found["words"] == ""


def test_answers_that_run_into_the_most_tokens_are_counted():
    before, after = [50] * 40, [50] * 30 + [100] * 10
    found = compare_lengths(answers(before), answers(after))
    # ten pairs differ, all one way: p = 2 (1/2)^10
    assert found["p"] == pytest.approx(2 / 1024) and (found["cut_off"], found["baseline_cut_off"]) == (10, 0)
    # (30 * 50 + 10 * 100) / (40 * 50) = 1.25
    assert found["ratio"] == pytest.approx(1.25) and found["low"] < 1.25 < found["high"]
    assert found["kind"] == "rambling"
    assert found["words"].startswith(
        "rambling: 10 of 40 answers ran into the most tokens, 0 of the baseline's; answers are 25 %"
    )


def test_fewer_cut_answers_are_no_rambling():
    found = compare_lengths(answers([50] * 30 + [100] * 10), answers([50] * 40))
    # 40 * 50 / (30 * 50 + 10 * 100) = 0.8
    assert found["p"] == pytest.approx(2 / 1024) and found["kind"] == "terse" and found["ratio"] == pytest.approx(0.8)


def test_a_few_cut_answers_may_be_chance():
    # three pairs differ: p = 2 (1/2)^3 = 0.25
    found = compare_lengths(answers([50] * 40), answers([50] * 37 + [100] * 3))
    assert found["p"] == pytest.approx(0.25) and found["kind"] is None


def test_short_answers_are_named_but_not_a_trifle():
    assert compare_lengths(answers([50] * 30), answers([40] * 30))["words"].startswith(
        "terse: answers are 20 % shorter (40"
    )
    # sure, and 2 %
    assert compare_lengths(answers([50] * 30), answers([49] * 30))["kind"] is None


def test_only_questions_that_both_answered_count():
    found = compare_lengths(
        answers([50, 60, 70]), [*answers([50, 60])[1:], {"question": 9, "output_tokens": 5, "cut_off": False}]
    )
    assert found["questions"] == 1 and found["tokens"] == 60 and found["low"] is None
    assert compare_lengths(answers([50]), [{"question": 0, "output_tokens": None}]) is None
