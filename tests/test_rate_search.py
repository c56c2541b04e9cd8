"""rate_search.py and serving_points.py: which loads a study asks for, and how a search finds its rate."""

import pytest
from quantbench.keys import key
from quantbench.rate_search import bracket, next_rate, probe_identity, probe_row
from quantbench.serving_points import mean_lengths, probe_parameters, search_parameters, serving_parameters

LENGTH = {"input_tokens": 64, "output_tokens": 16}
SERVING = {"lengths": [LENGTH], "requests": 20, "seed": 0, "burstiness": [1], "ramp_s": 0, "least_duration_s": 0}
SEARCH = {"least_rate_per_s": 1, "most_rate_per_s": 100, "probes": 9}
SLO = {"ttft_s": 0.2, "tpot_s": None, "e2e_s": None, "share": 0.9}


def parameters(workloads=(), **changed):
    return serving_parameters(SERVING | changed, dict(workloads))


# --- loads ------------------------------------------------------------------------------------------------------------


def test_at_its_defaults_a_load_is_what_it_always_was():
    rate, users = parameters(request_rates=[8], concurrencies=[2])
    assert rate == LENGTH | {"load": "rate", "rate_per_s": 8, "requests": 20, "seed": 0}
    assert users == LENGTH | {"load": "concurrency", "concurrency": 2, "requests": 20, "seed": 0}


def test_what_differs_from_the_default_is_a_parameter():
    even, bursts = parameters(request_rates=[8], burstiness=[1, 0.5], ramp_s=2)
    assert "burstiness" not in even and bursts["burstiness"] == 0.5
    assert even["ramp_s"] == bursts["ramp_s"] == 2
    (everyone,) = parameters(request_rates=["inf"], ramp_s=2)
    assert everyone == LENGTH | {"load": "all_at_once", "requests": 20, "seed": 0}


def test_every_slot_sends_ten_requests_and_every_load_lasts():
    few, many = parameters(concurrencies=[2, 8], least_duration_s=30)
    # 2 x 10 are the study's 20; 8 x 10 are more
    assert (few["requests"], many["requests"]) == (20, 80)
    assert few["least_duration_s"] == 30
    slow, fast = parameters(request_rates=[0.5, 4.5], least_duration_s=30)
    # 0.5 a second for 30 s are 15, and 20 are asked for; 4.5 a second are 135
    assert (slow["requests"], fast["requests"]) == (20, 135)
    assert "least_duration_s" not in fast


def test_workloads_stand_beside_fixed_lengths():
    chat = {"input_tokens": {"mean": 161}, "output_tokens": {"mean": 338}}
    fixed, drawn = parameters({"chat": chat}, request_rates=[8])
    assert fixed["input_tokens"] == 64 and drawn["workload"] == chat and "input_tokens" not in drawn
    assert (mean_lengths(fixed), mean_lengths(drawn)) == ((64, 16), (161, 338))


# --- the search ---------------------------------------------------------------------------------------------------------


def run(limit, search=SEARCH):
    """Rates that a search sends to a server which meets the SLO up to `limit` a second."""
    probes = []
    while (rate := next_rate(search, probes)) is not None:
        probes.append({"rate_per_s": rate, "met": rate <= limit})
    return [probe["rate_per_s"] for probe in probes], bracket(probes)


def test_bisection_closes_in_on_the_rate():
    rates, (met, missed) = run(17)
    # the ends, then geometric middles: sqrt(1 x 100) = 10, sqrt(10 x 100) = 31.6, sqrt(10 x 31.6) = 17.8, ...
    assert rates[:5] == [1, 100, 10, 31.6, 17.8]
    assert met <= 17 < missed and missed / met < 1.1
    assert len(rates) <= SEARCH["probes"]


def test_nothing_more_is_sent_once_the_answer_is_known():
    assert run(0.5) == ([1], (None, 1))
    assert run(100) == ([1, 100], (100, None))
    assert len(run(17, SEARCH | {"probes": 3})[0]) == 3
    # 4 and 4.1 are one rate: 1.05 apart
    assert run(4.05, SEARCH | {"least_rate_per_s": 4, "most_rate_per_s": 4.1})[0] == [4, 4.1]


def test_a_rate_met_by_chance_above_one_that_was_not_does_not_count():
    assert bracket([{"rate_per_s": r, "met": m} for r, m in ((1, True), (4, False), (8, True))]) == (1, 4)


def test_a_probe_is_the_point_that_a_study_may_ask_for_itself():
    asked = {"search": SEARCH, "slo": SLO, "burstiness": [0.5], "least_duration_s": 30, "ramp_s": 1}
    (search,) = search_parameters(SERVING | asked, {}, protocol=7)
    (point,) = parameters(request_rates=[4.5], **asked)
    assert probe_parameters(search, 4.5) == point
    assert search["slo"] == {"ttft_s": 0.2, "share": 0.9}
    identity = {"artefact": "point", "gpu": "cpu", "stage": "search", "protocol": 1, "versions": {}, "params": search}
    probe = probe_identity(identity, 4.5)
    assert probe == {**identity, "stage": "serving", "protocol": 7, "params": point}


def test_no_search_without_asking():
    assert search_parameters(SERVING | {"slo": SLO}, {}, 1) == []


@pytest.mark.parametrize(("first_s", "share", "met"), [((0.1,) * 10, 1.0, True), ((0.1,) * 8 + (0.3,) * 2, 0.8, False)])
def test_what_a_search_keeps_of_a_load(first_s, share, met):
    rows = [
        {"scheduled_s": 0.1 * n, "first_token_s": 0.1 * n + s, "finished_s": 0.1 * n + 1, "output_tokens": 16, "error": None}
        for n, s in enumerate(first_s)
    ]  # fmt: skip
    identity = {"params": {"rate_per_s": 10, "requests": 10}}
    row = probe_row(3, identity, {"status": "ok", "reason": None, "rows": rows}, {"ttft_s": 0.2, "share": 0.9})
    assert (row["probe"], row["rate_per_s"], row["probe_key"]) == (3, 10, key(identity))
    assert (row["within_share"], row["met"]) == (share, met)
    # 160 tokens within 1.9 s, from 0 to the last answer's end
    assert row["output_tokens_per_s"] == pytest.approx(160 / 1.9)


def test_a_load_that_is_not_ok_did_not_meet_it_and_says_why():
    record = {"status": "invalid", "reason": "2 of 10 requests failed", "rows": [{"error": "x"}]}
    row = probe_row(0, {"params": {"rate_per_s": 10, "requests": 10}}, record, SLO)
    assert (row["met"], row["probe_reason"], row["within_share"]) == (False, "2 of 10 requests failed", None)
