"""What the timed products say: made-up times whose answers are known by hand."""

import math

import polars as pl
import pytest
from quantbench.kernel_analysis import cells, crossovers, relu_speedups, winners
from quantbench.table_schema import SCHEMA

TYPES = {"str": pl.String, "int": pl.Int64, "float": pl.Float64, "bool": pl.Boolean}
PLACE = {"gpu": "h200", "model": "llama", "layer": "down_proj", "n": 4096, "k": 14336}
SPREAD = (0.999, 1.0, 1.001, 0.9995, 1.0005)


def rows(entry, seconds, m=1, *, contender=False, spread=SPREAD, **more):
    """Repeats of one product about `seconds`, the middle one exactly; floors: half of the time, a quarter by data sheet."""
    row = PLACE | {"status": "ok", "product": "linear", "cache": "cold", "launch": "eager", "m": m}
    row |= {"contender" if contender else "scheme": entry, "kernel": f"{entry} kernel", "computes": "bf16"}
    row |= {"run_id": "run", "floor_s": seconds / 2, "datasheet_floor_s": seconds / 4, "relative_error": 0.01} | more
    return [row | {"repeat": i, "latency_s": seconds * factor} for i, factor in enumerate(spread)]


def table(*groups):
    schema = {name: TYPES[column.type] for name, column in SCHEMA["gemm"].items()}
    return pl.DataFrame([row for group in groups for row in group], schema=schema)


def only(found, **wanted):
    (match,) = [one for one in found if all(one[name] == value for name, value in wanted.items())]
    return match


# --- cells ----------------------------------------------------------------------------------------------------------


def test_a_cell_has_its_share_of_both_ceilings_and_both_speedups():
    # bf16: 8 ms, floor 4 ms. int4: 4 ms, floor 1 ms: predicted 4 / 1, observed 8 / 4, share 1 / 4.
    found = cells(table(rows("bf16", 8e-3), rows("int4", 4e-3, floor_s=1e-3, datasheet_floor_s=0.5e-3)), "bf16")
    cell = only(found, entry="int4")
    assert (cell["median_s"], cell["share"], cell["datasheet_share"]) == (4e-3, 0.25, 0.125)
    assert (cell["predicted_speedup"], cell["datasheet_predicted_speedup"]) == (4, 4)
    assert cell["observed_speedup"] == pytest.approx(2)
    # Repeats differ by 0.1 % at most: no ratio of two medians leaves 2 by more than 0.2 %.
    assert 2 / 1.0021 < cell["observed_low"] < 2 < cell["observed_high"] < 2 * 1.0021
    # A longer time is a smaller share.
    assert cell["share_low"] == 1e-3 / cell["high_s"] < 0.25 < cell["share_high"] == 1e-3 / cell["low_s"]
    assert only(found, entry="bf16")["observed_speedup"] == 1
    assert (cell["kind"], cell["repeats"], cell["invalid_repeats"]) == ("scheme", 5, 0)


def test_only_primary_rows_count_and_throttled_ones_are_counted_apart():
    found = cells(
        table(
            rows("bf16", 8e-3, launch="eager"),
            rows("bf16", 4e-3, launch="graph"),
            rows("bf16", 1e-3, launch="graph", cache="hot"),
            rows("bf16", 2e-3, launch="graph", product="relu_linear"),
            rows("bf16", 9e-3, launch="graph", status="invalid", reason="throttled: power", spread=(1, 1)),
        ),
        "bf16",
    )
    (cell,) = found
    assert (cell["launch"], cell["median_s"], cell["repeats"], cell["invalid_repeats"]) == ("graph", 4e-3, 5, 2)


def test_a_kernel_without_a_graph_is_compared_with_the_baseline_launched_the_same_way():
    base = rows("bf16", 8e-3, launch="eager") + rows("bf16", 4e-3, launch="graph")
    found = cells(table(base, rows("op", 4e-3, contender=True, launch="eager")), "bf16")
    cell = only(found, entry="op")
    assert (cell["kind"], cell["launch"]) == ("contender", "eager") and cell["observed_speedup"] == pytest.approx(2)
    # Against the graph it would have tied; a graph and a call do not compete.
    assert only(winners(found))["candidates"] == 1


def test_a_single_repeat_has_a_value_and_no_interval():
    found = cells(table(rows("bf16", 8e-3, spread=(1,)), rows("int4", 4e-3)), "bf16")
    cell = only(found, entry="bf16")
    assert (cell["median_s"], cell["low_s"], cell["share_low"]) == (8e-3, None, None)
    cell = only(found, entry="int4")
    assert cell["observed_speedup"] == pytest.approx(2) and cell["observed_low"] is None


def test_missing_things_are_null():
    unsupported = [PLACE | {"status": "unsupported", "product": "linear", "scheme": "nvfp4", "m": 1}]
    floorless = rows("int4", 4e-3, floor_s=None, datasheet_floor_s=None)
    found = cells(table(floorless, unsupported, rows("bf16", 8e-3, m=16)), "bf16")
    assert {(cell["entry"], cell["m"]) for cell in found} == {("int4", 1), ("bf16", 16)}
    cell = only(found, entry="int4")
    names = ("share", "datasheet_share", "predicted_speedup", "observed_speedup", "observed_low")
    assert [cell[name] for name in names] == [None] * 5
    assert cells(table(), "bf16") == []


def test_measurements_that_two_entries_share_are_one():
    shared = rows("gptq", 4e-3)
    found = cells(
        table(
            [row | {"scheme": "awq"} for row in shared],
            shared,
            rows("bf16", 8e-3),
            [row | {"scheme": "left-alone"} for row in rows("bf16", 8e-3)],
        ),
        "bf16",
    )
    assert {cell["entry"]: cell["same_as"] for cell in found} == {
        "awq": None,
        "gptq": "awq",
        "bf16": None,
        "left-alone": "bf16",
    }
    assert only(winners(found))["candidates"] == 2


# --- winners --------------------------------------------------------------------------------------------------------


def winner(*groups):
    return only(winners(cells(table(*groups), "bf16")))


def test_the_fastest_wins_where_nothing_else_could_be():
    found = winner(rows("bf16", 8e-3), rows("int4", 4e-3), rows("fp8", 5e-3))
    assert (found["best"], found["second"], found["undecided"], found["verdict"]) == ("int4", "fp8", [], "wins")
    assert found["ratio"] == pytest.approx(1.25) and found["low"] < 1.25 < found["high"] and found["candidates"] == 3


def test_a_tie_has_no_winner():
    wide = (0.9, 0.95, 1.0, 1.05, 1.1)
    found = winner(rows("bf16", 8e-3), rows("int4", 4.0e-3, spread=wide), rows("fp8", 4.1e-3, spread=wide))
    assert (found["best"], found["undecided"]) == ("int4", ["fp8"])
    assert found["verdict"] == "no significant difference" and found["low"] < 1 < found["high"]


def test_many_rivals_ask_for_more_than_one():
    """A ratio whose interval just leaves 1 out is significant alone, and not among twenty (Holm)."""
    wide = [0.94, 0.96, 0.98, 1.0, 1.02, 1.04, 1.06]
    rival = rows("fp8", 4.28e-3, spread=wide)
    alone = winner(rows("int4", 4e-3, spread=wide), rival)
    assert alone["verdict"] == "wins" and alone["low"] > 1
    twenty = [rows(f"near {i}", 4.29e-3 + i * 1e-6, spread=wide) for i in range(19)]
    assert "fp8" in winner(rows("int4", 4e-3, spread=wide), rival, *twenty)["undecided"]


def test_what_leaves_quantizing_out_does_not_compete():
    op = rows("op", 1e-3, contender=True, includes_quantization=False)
    found = winner(rows("bf16", 8e-3), rows("int8", 4e-3, includes_quantization=True), op)
    assert (found["best"], found["second"]) == ("int8", "bf16")


def test_single_repeats_tell_nothing():
    found = winner(rows("bf16", 8e-3, spread=(1,)), rows("int4", 4e-3, spread=(1,)))
    assert (found["verdict"], found["undecided"], found["low"]) == ("cannot tell", ["bf16"], None)
    found = winner(rows("bf16", 8e-3))
    assert (found["verdict"], found["second"], found["undecided"]) == ("alone", None, [])


# --- crossovers -----------------------------------------------------------------------------------------------------


def crossover(speedups, spread=SPREAD):
    """int4 is `speedups[m]` times as fast as bf16."""
    made = [rows("bf16", 8e-3, m, spread=spread) for m in speedups]
    made += [rows("int4", 8e-3 / speedup, m, spread=spread) for m, speedup in speedups.items()]
    return only(crossovers(cells(table(*made), "bf16"), "bf16"), entry="int4")


def test_where_a_scheme_stops_paying():
    # From 2 at M = 64 to 1/2 at M = 256, in logarithms a straight line: 1 in the middle, at M = 128.
    found = crossover({1: 3.0, 64: 2.0, 256: 0.5, 1024: 0.4})
    assert found["outcome"] == "stops" and found["at"] == pytest.approx(128, rel=1e-3)
    # Times within 0.2 %: the crossing within 128 x 4^(+-0.002 / ln 4) or so.
    assert 127 < found["low"] < 128 < found["high"] < 129 and found["interval"]
    assert (found["tokens"], found["then"], found["unclear"]) == ([1, 64, 256, 1024], [], [])


def test_where_it_starts():
    # From 1/2 at M = 1 to 4 at M = 64: a third of the way, at M = 64^(1/3) = 4.
    found = crossover({1: 0.5, 64: 4.0})
    assert found["outcome"] == "starts" and found["at"] == pytest.approx(4, rel=1e-3)
    assert 3.9 < found["low"] < 4 < found["high"] < 4.1


def test_none_in_the_range_both_ways():
    always, never = crossover({1: 3.0, 64: 2.0}), crossover({1: 0.9, 64: 0.5})
    assert (always["outcome"], never["outcome"]) == ("always", "never")
    for found in (always, never):
        assert (found["at"], found["low"], found["high"], found["unclear"]) == (None, None, None, [])


def test_an_interval_may_leave_the_range():
    wide = (0.9, 0.95, 1.0, 1.05, 1.1)
    found = crossover({1: 2.0, 64: 0.99}, spread=wide)
    assert found["outcome"] == "stops" and found["high_open"] and found["high"] is None and found["low"] > 1
    assert found["unclear"] == [64] and not found["low_open"]


def test_a_curve_that_turns_again():
    found = crossover({1: 2.0, 4: 0.5, 16: 2.0})
    assert (found["outcome"], [kind for kind, _ in found["then"]]) == ("stops", ["starts"])
    assert found["at"] == pytest.approx(2, rel=1e-3) and found["then"][0][1] == pytest.approx(8, rel=1e-3)


def test_exactly_as_fast_does_not_pay():
    assert crossover({1: 2.0, 64: 1.0})["at"] == pytest.approx(64)
    assert crossover({1: 1.0, 64: 1.0})["outcome"] == "never"


def test_a_missing_m_is_skipped_and_one_m_makes_no_curve():
    made = [rows("bf16", 8e-3, m) for m in (1, 64, 256)] + [rows("int4", 4e-3, 1), rows("int4", 16e-3, 256)]
    (found,) = crossovers(cells(table(*made), "bf16"), "bf16")
    assert found["tokens"] == [1, 256] and found["at"] == pytest.approx(math.sqrt(256), rel=1e-3)
    made = [rows("bf16", 8e-3, m) for m in (1, 64)] + [rows("int4", 4e-3, 1)]
    assert crossovers(cells(table(*made), "bf16"), "bf16") == []


def test_a_single_repeat_gives_a_crossing_without_an_interval():
    found = crossover({1: 2.0, 64: 0.5}, spread=(1,))
    assert found["at"] == pytest.approx(8) and not found["interval"] and found["low"] is None


# --- ReLU, then linear ----------------------------------------------------------------------------------------------


def test_relu_then_linear_is_beside_what_is_expected():
    relu = {"product": "relu_linear"}
    gemm = table(rows("bf16", 8e-3, **relu), rows("fp8", 4e-3, **relu), rows("fp8", 1e-3), rows("bf16", 1e-3))
    (found,) = relu_speedups(gemm, "bf16", lambda cell: 1.5 if cell["entry"] == "fp8" else None)
    assert found["entry"] == "fp8" and found["expected_speedup"] == 1.5
    assert found["observed_speedup"] == pytest.approx(2)
