"""A short, seeded run of the simulations that `make bench` runs in full: the promised error rates hold."""

import pytest
from bench.error_rates import Row, any_difference, called_equal, loss_found, observe, rows, speed_said, table_lines
from quantbench import paired

ROUNDS = 60


@pytest.mark.parametrize(
    ("event", "promise"),
    [
        (any_difference(60, 0.1, schemes=3), ("<=", 0.05)),
        (loss_found(60, 0.1, paired.smallest_difference(60)), (">=", 0.8)),
        (called_equal(500, 0.04, 0.01), ("<=", 0.025)),
        (speed_said("better", starts=2, shared=0.02, repeats=5, batches=(1, 4)), ("<=", 0.025)),
    ],
)
def test_a_promise_holds(event, promise):
    assert observe(Row("seeded", event, promise), ROUNDS)["holds"]


def test_the_simulations_see_what_is_broken():
    # one start, and starts that differ by 2 %: the repeats' own interval is far too narrow, which is why there are two
    event = speed_said("better", starts=1, shared=0.02, repeats=5, batches=(1,))
    assert observe(Row("seeded", event, ("<=", 0.025)), ROUNDS)["holds"] is False
    # a loss half as large is not found as often
    event = loss_found(60, 0.1, paired.smallest_difference(60) / 2)
    assert observe(Row("seeded", event, (">=", 0.8)), ROUNDS)["holds"] is False


def test_every_row_runs_and_is_told():
    found = [observe(row, 1) for row in rows() if "1319" not in row.name and "4000" not in row.name]
    lines = table_lines(found)
    assert len(lines) == len(found) + 1 and len({row["name"] for row in found}) == len(found)
    assert any("[" in line and "<= 5 %" in line for line in lines)
