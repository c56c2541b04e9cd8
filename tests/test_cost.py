"""$ per million tokens: at the load that meets the SLO, never at the peak."""

import pytest
from quantbench.cost import costs, loads_of, usd_per_million_tokens

SLO = {"e2e_s": 1.0, "share": 0.9}


def requests(scheme, rate, seconds, n=40, gpu="h200"):
    """A load of n requests of 10 tokens each, all answered within `seconds`."""
    row = {"gpu": gpu, "model": "m", "scheme": scheme, "start": 1, "load": "rate", "rate_per_s": rate}
    row |= {"concurrency": None, "burstiness": 1, "workload": None, "input_tokens_asked": 8, "output_tokens_asked": 10}
    row |= {"output_tokens": 10, "error": None}
    due = [i / rate for i in range(n)]
    return [
        row | {"scheduled_s": t, "sent_s": t, "first_token_s": t + seconds / 2, "finished_s": t + seconds} for t in due
    ]


def test_arithmetic():
    # 3.60 $ an hour is 0.001 $ a second; at 1000 tokens a second a million take 1000 seconds: 1 $.
    assert usd_per_million_tokens(3.6, 1000) == pytest.approx(1.0)


def test_the_peak_is_not_the_price_where_it_misses_the_slo():
    loads = loads_of(requests("bf16", 1, 0.5) + requests("bf16", 50, 4.0), [], SLO)
    peak = max(loads, key=lambda load: load["tokens_per_s"])
    (row,) = costs(loads, {"h200": 3.6})
    assert (peak["level"], peak["met"]) == (50, False)
    assert row["level"] == 1 and row["certain"]
    # 40 requests of 10 tokens in 39 s and the last answer's half second.
    assert row["usd_per_million"] == pytest.approx(0.001 / (400 / 39.5) * 1e6)


def test_a_probe_of_a_search_counts_as_a_load():
    probe = {"gpu": "h200", "model": "m", "scheme": "fp8", "workload": None, "input_tokens_asked": 8}
    probe |= {"output_tokens_asked": 10, "rate_per_s": 9.0, "probe_status": "ok", "met": True, "within_low": 0.85}
    probe["output_tokens_per_s"] = 90.0
    (row,) = costs(loads_of([], [probe, probe | {"probe_status": "invalid"}], SLO), {"h200": 3.6})
    assert (row["level"], row["certain"]) == (9.0, False)


def test_cheapest_first_over_devices_and_none_for_what_never_meets_the_slo():
    rows = requests("bf16", 1, 0.5) + requests("fp8", 4, 0.5, gpu="a100") + requests("int4", 1, 3.0)
    found = costs(
        loads_of(rows + requests("bf16", 1, 0.5, gpu="cpu"), [], SLO), {"h200": 3.6, "a100": 1.8, "cpu": None}
    )
    assert [(row["gpu"], row["scheme"]) for row in found] == [("a100", "fp8"), ("h200", "bf16"), ("h200", "int4")]
    assert found[-1]["usd_per_million"] is None


def test_a_variant_on_several_devices_costs_all_of_them():
    loads = loads_of(requests("bf16", 1, 0.5), [], SLO)
    (one,), (two,) = costs(loads, {"h200": 3.6}), costs(loads, {"h200": 3.6}, devices=2)
    assert two["usd_per_million"] == pytest.approx(2 * one["usd_per_million"])
