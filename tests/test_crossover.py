"""From which batch size on another scheme is faster: curves whose crossing is known, and what is no crossing."""

import numpy as np
import pytest
from made_tables import Made
from quantbench import crossover
from quantbench.comparison import Chance
from quantbench.crossover import CROSSES, NONE, UNDECIDED, crossovers

BATCHES = (1, 4, 16, 64)
# bf16 takes 1 + b / 16, the other scheme is faster by half at batch 1 and loses as the batch grows: gain 2 b^(-1/4).
GAINS = {batch: 2 * batch**-0.25 for batch in BATCHES}


def tables(gains, starts=1, jitter=(0.99, 1.0, 1.0, 1.0, 1.0, 1.01)):
    made = Made()
    for batch, gain in gains.items():
        for start in range(1, starts + 1):
            shift = 1 + 0.02 * (start - 1)
            seconds = shift * (1 + batch / 16)
            made.speed("bf16", seconds, "latency", batch, jitter=jitter)
            made.speed("w4", seconds / gain, "latency", batch, jitter=jitter)
            for row in made.tables["latency"][-2 * len(jitter) :]:
                row["start"] = start
    return made.tables


def only(found):
    (pair,) = found
    return pair


def test_the_crossing_of_power_laws_is_where_they_are_equal():
    pair = only(crossovers(tables(GAINS), "latency"))
    # 2 b^(-1/4) = 1 at b = 16, a measured batch size whose interval holds 1
    assert pair["kind"] == CROSSES and pair["schemes"] == ("bf16", "w4")
    (one,) = pair["crossings"]
    assert (one["faster_below"], one["faster_above"], one["between"]) == ("w4", "bf16", (4, 64))
    assert one["batch"] == pytest.approx(16, rel=0.01)
    assert 14 < one["low"] <= 16 <= one["high"] < 18


def test_between_two_measured_batch_sizes_the_ratio_is_a_power_of_the_batch_size():
    pair = only(crossovers(tables({1: 1.5, 16: 2 / 3}), "latency"))
    # log(1.5) to -log(1.5) over four doublings: zero after two, at batch 4
    assert pair["crossings"][0]["batch"] == pytest.approx(4, rel=0.01)


def test_faster_at_every_batch_size_is_no_crossover():
    assert only(crossovers(tables(dict.fromkeys(BATCHES, 1.5)), "latency"))["kind"] == NONE
    assert only(crossovers(tables(dict.fromkeys(BATCHES, 1.5)), "latency"))["faster"] == "w4"


def test_a_ratio_within_its_interval_is_not_decided():
    pair = only(crossovers(tables({1: 1.5, 4: 1.001, 16: 0.999}), "latency"))
    assert (pair["kind"], pair["faster"], pair["open"]) == (UNDECIDED, "w4", [4, 16])


def test_three_changes_are_three_crossovers():
    pair = only(crossovers(tables({1: 1.5, 4: 0.7, 16: 1.5, 64: 0.7}), "latency"))
    assert [one["between"] for one in pair["crossings"]] == [(1, 4), (4, 16), (16, 64)]
    assert [one["faster_below"] for one in pair["crossings"]] == ["w4", "bf16", "w4"]


def test_what_starts_differ_by_widens_the_interval():
    alone, twice = (only(crossovers(tables(GAINS, starts=n), "latency"))["crossings"][0] for n in (1, 2))
    assert twice["low"] < alone["low"] and twice["high"] > alone["high"]


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Lognormal times with a known crossing at batch 8; 95 % of 200 intervals have to hold it, give or take chance."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(200):
        pair = {"a": [], "b": []}
        for batch, gain in ((2, 1.2), (32, 1 / 1.2)):
            for name, factor in (("a", gain**-0.5), ("b", gain**0.5)):
                times = batch * factor * np.exp(rng.normal(0, 0.03, 10))
                pair[name].append([{"elapsed_s": float(t)} for t in times])
        found = crossover.compare(pair, [2, 32], "latency", Chance(0.95, {"latency": None}))
        held += found["crossings"][0]["low"] <= 8 <= found["crossings"][0]["high"]
    # 190 of 200 expected; fewer than 180 has a chance of 1 in 1000
    assert held >= 180


def test_a_pair_needs_two_batch_sizes_in_common():
    made = Made().speed("bf16", 1.0, "latency", 1).speed("bf16", 2.0, "latency", 4).speed("w4", 1.0, "latency", 1)
    assert crossovers(made.tables, "latency") == []


@pytest.mark.parametrize(
    ("column", "first", "last"),
    [
        # above, below, above, below zero: passes three times
        ([1.0, -1.0, 1.0, -1.0], 0.5, 2.5),
        ([-1.0, -1.0, -1.0, -1.0], 0.0, 0.0),
        ([1.0, 1.0, 1.0, 1.0], 3.0, 3.0),
        ([3.0, -1.0, -1.0, -1.0], 0.75, 0.75),
        # begins below zero: it has passed by then, and passes again
        ([-1.0, 1.0, 1.0, -1.0], 0.0, 2.5),
    ],
)
def test_where_a_curve_passes_zero(column, first, last):
    x, values = np.arange(4.0), np.array(column)[:, None]
    assert crossover._passes(x, values, last=False)[0] == pytest.approx(first)
    assert crossover._passes(x, values, last=True)[0] == pytest.approx(last)
