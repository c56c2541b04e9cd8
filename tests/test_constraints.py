"""The cheapest variant within constraints, on made-up loads and answers whose decision is known."""

import math

import numpy as np
import pytest
from made_tables import BASE, Made, flipped
from quantbench.capacity import break_even, capacity, copies, drawn_capacity, loads_by_rate, requests_needed
from quantbench.comparison import summarize
from quantbench.constraints import Asked, decide, drawn_recoveries
from quantbench.pareto import front, interactivity_and_throughput
from test_cost import requests

SLO = {"e2e_s": 1.0, "share": 0.9}
PRICES = {"h200": 3.6, "a100": 1.8}


def load(rate, within, n=200, scheme="bf16", gpu="h200", tokens=10):
    """A load by rate, `within` of whose n requests kept the SLO."""
    rows = requests(scheme, rate, 0.5, n, gpu)
    for row in rows[within:]:
        row["finished_s"] = row["scheduled_s"] + 2.0
    return [row | {"output_tokens": tokens} for row in rows]


def summary_of(made, schemes, gpus=("h200",)):
    """Entries of schemes that are measured, by a throughput point each."""
    for gpu in gpus:
        for scheme in schemes:
            made.speed(scheme, 1.0, gpu=gpu)
    return summarize(made.tables, "bf16")


def decided(serving, *, answers=None, limits=None, schemes=("bf16", "fp8"), gpus=("h200",), memory=None, **asked):
    """decide() of these serving rows and {scheme: answers}, on 400 questions of one task, of every gpu."""
    made = Made()
    for scheme, correct in (answers or {}).items():
        for gpu in gpus:
            rows = [{"task": "gsm8k", "dataset": "d", "shots": 3, "filter": "f", "question": i, "correct": bool(c)}
                    for i, c in enumerate(correct)]  # fmt: skip
            made.add("accuracy", scheme, rows, gpu=gpu)
    entries = summary_of(made, schemes, gpus)
    asked = Asked(limits or {}, SLO, asked.pop("prices", PRICES), **asked)
    recovered = drawn_recoveries(entries, made.tables["accuracy"])
    return decide(entries, loads_by_rate(serving, [], SLO), recovered, memory or {}, asked)


def variant(found, scheme, gpu="h200"):
    return next(v for v in found["variants"] if (v["scheme"], v["gpu"]) == (scheme, gpu))


def figure(found, scheme, constraint, gpu="h200"):
    return next(f for f in variant(found, scheme, gpu)["figures"] if f["constraint"] == constraint)


# --- what a copy carries ----------------------------------------------------------------------------------------------


def test_capacity_is_the_highest_rate_below_the_first_miss_with_what_is_certain_of_it():
    # 186 of 200: Wilson 0.886 to 0.958, met but not certain; 172 of 200: 0.805 to 0.901, missed but not certain
    rows = load(1, 200) + load(2, 186) + load(4, 172) + load(8, 40) + load(16, 200)
    assert capacity(loads_by_rate(rows, [], SLO), SLO) == (2, 1, 8)
    assert capacity(loads_by_rate(load(8, 40), [], SLO), SLO) == (None, None, 8)
    assert capacity(loads_by_rate(load(8, 200), [], SLO), SLO) == (8, 8, None)


def test_a_probe_counts_once_and_a_second_start_does_not():
    probe = {"gpu": "h200", "model": "m", "scheme": "bf16", "start": 1, "workload": None, "input_tokens_asked": 8}
    probe |= {"output_tokens_asked": 10, "rate_per_s": 4, "probe_status": "ok", "met": True, "within_share": 0.95}
    probe |= {"requests": 200, "goodput_per_s": 3.8, "output_tokens_per_s": 40.0}
    again = [row | {"start": 2} for row in load(1, 0)]
    found = loads_by_rate(load(4, 200) + again, [probe, probe | {"rate_per_s": 6}, probe | {"start": 2}], SLO)
    assert [(one["rate_per_s"], one["within"]) for one in found] == [(4, 200), (6, 190)]
    # 40 tokens a second at 3.8 / 0.95 = 4 requests a second: 10 tokens each
    assert found[1]["tokens"] == pytest.approx(10)


def test_resamples_of_a_load_follow_its_binomial():
    loads = loads_by_rate(load(1, 200) + load(2, 180), [], SLO)
    drawn = drawn_capacity(loads, SLO, np.random.default_rng(0), 4000)
    assert set(drawn) == {1, 2}
    # P(Binomial(200, 0.9) >= 180) = 0.559
    assert (drawn == 2).mean() == pytest.approx(0.559, abs=0.03)
    # a rate above one that did not meet it does not count
    loads = loads_by_rate(load(1, 200) + load(2, 180) + load(4, 200), [], SLO)
    assert set(drawn_capacity(loads, SLO, np.random.default_rng(0), 100)) == {1, 4}


def test_requests_that_would_tell():
    (found,) = loads_by_rate(load(1, 20, n=20), [], SLO)
    # all within: the interval's low end is n / (n + 1.96^2), at 0.9 from 34.6 on
    assert requests_needed(found, SLO) == 35
    (even,) = loads_by_rate(load(1, 180), [], SLO)
    assert requests_needed(even, SLO) is None


def test_copies_and_break_even():
    assert [copies(x, 4) for x in (0.5, 4, 4.1, 8)] == [1, 1, 2, 2] and copies(0.3, 0.1) == 3
    # 10/s for 3 $ and 4/s for 1 $: 0.30 $ and 0.25 $ a request, and at few requests the second needs less, too
    assert break_even((10, 3), (4, 1)) is None
    # 4/s for 2 $: 2 $ up to 4, then 4 $ against 3 $
    assert break_even((10, 3), (4, 2)) == (4, 0)
    # from 9/s on: 3 $ against 6 $; just above 10 it is 6 $ against 6 $, above 12 6 $ against 8 $; never the other way
    assert break_even((10, 3), (4, 2), load_per_s=9) is None
    assert break_even((10, 3), (10, 3)) is None


# --- decisions --------------------------------------------------------------------------------------------------------


def test_the_cheapest_feasible_wins_and_the_cheaper_inaccurate_does_not():
    serving = load(4, 200) + load(16, 20) + load(8, 200, scheme="fp8") + load(16, 20, scheme="fp8")
    serving += load(16, 200, scheme="int4") + load(32, 0, scheme="int4")
    answers = {"bf16": BASE, "fp8": flipped(BASE, 2, 2), "int4": flipped(BASE, 60, 0)}
    found = decided(serving, answers=answers, limits={"recovery": 0.97}, schemes=("bf16", "fp8", "int4"))
    assert (found["winner"]["scheme"], found["runner_up"]["scheme"], found["tied"]) == ("fp8", "bf16", [])
    # 3.60 $ an hour is 0.001 $ a second, for 8 x 10 tokens
    assert found["winner"]["usd_per_million"] == pytest.approx((12.5, 6.25, 12.5))
    # 300 of 360 right is 83 %, and no interval of that reaches 97 %
    assert (variant(found, "int4")["state"], figure(found, "int4", "recovery")["state"]) == ("infeasible", "missed")
    assert found["winner"]["chance"] > 0.99 and variant(found, "int4")["chance"] == 0 and found["none"] == 0
    assert sum(v["chance"] for v in found["variants"]) == pytest.approx(1)


def test_undecided_accuracy_is_not_chosen_and_says_how_many_questions_would_tell():
    serving = load(4, 200) + load(8, 200, scheme="fp8")
    found = decided(serving, answers={"bf16": BASE, "fp8": flipped(BASE, 4, 2)}, limits={"recovery": 0.99})
    seen = figure(found, "fp8", "recovery")
    assert found["winner"]["scheme"] == "bf16" and variant(found, "fp8")["state"] == "undecided"
    assert seen["low"] < 0.99 < seen["value"] == pytest.approx(358 / 360)
    # 4.6 thousandths above the floor, and the half width, 1.36 % of 400 questions, shrinks with the root: 3.5 thousand
    assert 2000 < seen["needed"] < 6000
    # it is cheaper wherever the resample keeps its accuracy: P(won - lost >= -3.6 of 400), sd 2.4, mean -2
    assert 0.6 < variant(found, "fp8")["chance"] < 0.9
    assert figure(decided(serving, answers={"bf16": BASE, "fp8": BASE}, limits={"recovery": 0.97}), "fp8", "recovery")[
        "state"] == "met"  # fmt: skip


def test_ties_share_the_chance_and_the_baseline_comes_first():
    found = decided(load(8, 200) + load(16, 0) + load(8, 200, scheme="fp8") + load(16, 0, scheme="fp8"))
    assert (found["winner"]["scheme"], [v["scheme"] for v in found["tied"]]) == ("bf16", ["fp8"])
    assert found["runner_up"] is None and found["break_even"] is None
    assert [v["chance"] for v in found["variants"]] == [0.5, 0.5]


def test_nothing_feasible_says_so():
    missed = load(8, 0) + load(8, 10, scheme="fp8")
    found = decided(missed)
    assert found["winner"] is None and {v["state"] for v in found["variants"]} == {"infeasible"} and found["none"] == 1
    # 95 of 100 at the only rate: 0.888 to 0.978
    found = decided(load(8, 0) + load(8, 95, n=100, scheme="fp8"))
    assert found["winner"] is None and variant(found, "fp8")["state"] == "undecided"
    assert figure(found, "fp8", "slo")["needed"] > 100
    # P(Binomial(100, 0.95) < 90) = 0.0115 + ...: about 3 %
    assert 0.005 < found["none"] < 0.06


def test_missing_cells_are_undecided_and_not_drawn():
    answers = {"bf16": BASE}
    found = decided(load(8, 200), answers=answers, limits={"recovery": 0.9, "memory_bytes": 1e9},
                    memory={("h200", "bf16"): 5e8})  # fmt: skip
    assert found["winner"]["scheme"] == "bf16" and found["winner"]["chance"] == 1
    fp8 = variant(found, "fp8")
    assert (fp8["state"], fp8["chance"], fp8["cost"]) == ("undecided", None, (None, None, None))
    assert [f["why"] for f in fp8["figures"]] == [
        "no load by rate was measured", "not measured", "the engine did not say what it held"]  # fmt: skip
    # what was not measured may well be feasible
    assert decided(load(8, 0), schemes=("bf16", "fp8"))["none"] is None
    # a device without a price is no candidate, and hides none
    found = decided(load(8, 200) + load(16, 200, gpu="a100"), gpus=("h200", "a100"), prices={"h200": 3.6})
    assert (found["winner"]["gpu"], variant(found, "bf16", "a100")["chance"]) == ("h200", None)
    assert decided(load(8, 200), prices={})["winner"] is None and decided(load(8, 200), prices={})["none"] is None


def test_a_variant_that_cannot_run_or_ran_unquantized_is_infeasible():
    made = Made().speed("bf16", 1.0).speed("int8", 1.0).ran("int8", "unquantized")
    made.add("throughput", "nvfp4", [{}], status="unsupported", reason="no kernel")
    asked = Asked({}, SLO, PRICES)
    loads = loads_by_rate(load(4, 200) + load(8, 200, scheme="int8"), [], SLO)
    found = decide(summarize(made.tables, "bf16"), loads, {}, {}, asked)
    assert found["winner"]["scheme"] == "bf16"
    assert figure(found, "nvfp4", "runs")["why"] == "unsupported: no kernel"
    assert (variant(found, "int8")["state"], variant(found, "int8")["chance"]) == ("infeasible", 0)


def test_memory_and_hourly_cost_are_limits():
    serving = load(4, 200) + load(8, 20) + load(8, 200, scheme="fp8") + load(16, 20, scheme="fp8")
    held = {("h200", "bf16"): 8e9, ("h200", "fp8"): 12e9}
    assert decided(serving, limits={"memory_bytes": 10e9}, memory=held)["winner"]["scheme"] == "bf16"
    # 16 requests per second: 4 copies at 4/s (2 at 8/s, were that met) are 14.40 $, 2 copies at 8/s 7.20 $
    found = decided(serving, limits={"load_per_s": 16, "usd_per_hour": 8})
    assert found["metric"] == "usd_per_hour" and found["winner"]["scheme"] == "fp8"
    assert variant(found, "bf16")["copies"] == (4, 2, 4)
    assert variant(found, "bf16")["usd_per_hour"] == pytest.approx((14.4, 7.2, 14.4))
    assert variant(found, "bf16")["state"] == "undecided" and variant(found, "bf16")["chance"] == 0
    assert variant(decided(serving, limits={"load_per_s": 16, "usd_per_hour": 3}), "fp8")["chance"] == 0


def test_the_load_decides_between_a_large_device_and_a_small_one():
    serving = load(16, 200) + load(32, 0) + load(5, 200, gpu="a100") + load(8, 0, gpu="a100")
    both = {"schemes": ("bf16",), "gpus": ("h200", "a100")}
    small, large = (decided(serving, limits={"load_per_s": load_per_s}, **both) for load_per_s in (4, 14))
    assert (small["winner"]["gpu"], small["winner"]["cost"][0]) == ("a100", 1.8)
    # just above 10/s: three small ones are 5.40 $, one large one 3.60 $; at 5 to 10 both are 3.60 $
    assert small["break_even"] == (10, 1)
    assert (large["winner"]["gpu"], large["winner"]["copies"][0], variant(large, "bf16", "a100")["copies"][0]) == (
        "h200",
        1,
        3,
    )
    # above 16/s two large ones are 7.20 $, four small ones as well; above 20/s five are 9.00 $: never cheaper again
    assert large["break_even"] is None


def test_a_model_divided_among_devices_costs_all_of_them():
    one, two = decided(load(8, 200)), decided(load(8, 200), devices=2)
    assert two["winner"]["cost"][0] == pytest.approx(2 * one["winner"]["cost"][0])


def test_what_schemes_answered_to_one_question_is_drawn_together():
    # Both lose the same questions: wherever one is below the floor the other is too, so that the dearer never wins.
    lost = flipped(BASE, 8, 0)
    serving = load(2, 200) + load(8, 200, scheme="fp8") + load(4, 200, scheme="int8")
    answers = {"bf16": BASE, "fp8": lost, "int8": lost}
    found = decided(serving, answers=answers, limits={"recovery": 0.978}, schemes=("bf16", "fp8", "int8"))
    chances = {v["scheme"]: v["chance"] for v in found["variants"]}
    assert chances["int8"] == 0 and 0.3 < chances["fp8"] < 0.7 and math.isclose(sum(chances.values()), 1)


# --- Pareto fronts ----------------------------------------------------------------------------------------------------


def test_a_front_keeps_what_nothing_beats_and_equals():
    points = [(1, 5), (2, 4), (2, 3), (3, 1), (3, 1), (0, 5)]
    assert front(points, lambda p: p) == [(3, 1), (3, 1), (2, 4), (1, 5)]


def test_interactivity_against_throughput():
    slow = [row | {"first_token_s": row["scheduled_s"] + 0.05} for row in load(4, 200)]
    # half a second in the middle: 9 further tokens in 0.25 s, and in 0.45 s
    fronts = interactivity_and_throughput(load(1, 200) + slow + load(2, 200, scheme="fp8", tokens=5), devices=2)
    (points,) = fronts.values()
    assert [(p["scheme"], p["level"]) for p in points] == [("bf16", 1), ("bf16", 4)]
    assert [p["per_user"][0] for p in points] == pytest.approx([36, 20])
    # 200 requests of 10 tokens in 199 / 4 + 0.5 s, on two devices
    assert points[1]["per_device"] == pytest.approx(2000 / 50.25 / 2)
