"""The benchmark's comparison of two sides that measured in turn: rounds whose ratio is known."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))

from agreement import compare_rounds

# The machine becomes half as fast on the way, and one round of ours is disturbed: of no concern to the ratio.
THEIRS = [1.0 + 0.05 * i for i in range(20)]


def ours(factor):
    return [(10.0 if i == 7 else 1.0) * factor * one for i, one in enumerate(THEIRS)]


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.005, "within 1 %"), (0.995, "within 1 %"), (1.03, "apart by more than 1 %"), (0.97, "apart by more than 1 %")],
)
def test_a_constant_ratio_is_found_whatever_the_machine_does(factor, verdict):
    found = compare_rounds({"ours": ours(factor), "theirs": THEIRS}, 0.01)
    assert found["difference"] == pytest.approx((factor - 1,) * 3)
    assert found["verdict"] == verdict


def test_an_interval_that_reaches_over_the_limit_is_undecided():
    noisy = [one * (1.0 + (0.03 if i % 2 else -0.03)) for i, one in enumerate(THEIRS)]
    found = compare_rounds({"ours": noisy, "theirs": THEIRS}, 0.01)
    assert found["difference"][1:] == pytest.approx((-0.03, 0.03)) and found["verdict"] == "undecided"
