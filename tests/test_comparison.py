"""Comparisons of schemes with the baseline on made-up data whose answers are known."""

import pytest
from made_tables import BASE, Made, flipped, two
from quantbench.decision import choose, summarize
from quantbench.verdict import about


def test_summary_of_speed():
    made = two()
    for batch in (1, 16, 64):
        made.speed("bf16", 1.0, "latency", batch).speed("int8", 0.8, "latency", batch)
    _, entry = summarize(made.tables, "bf16")
    assert [(s["metric"], s["batch_size"]) for s in entry["speed"]] == [
        ("throughput", 64),
        ("latency", 1),
        ("latency", 64),
    ]
    assert entry["speed"][0]["gain"] == pytest.approx(2.0)
    # three repeats of +-1 % each, Welch: 2.776 * 0.01 * sqrt(2/3) = 2.27 %: 2 / 1.023 to 2 * 1.023
    assert entry["speed"][0]["low"] == pytest.approx(2 / 1.0229, rel=1e-3)
    assert entry["speed"][0]["high"] == pytest.approx(2 * 1.0229, rel=1e-3)
    assert entry["speed"][0]["words"] == "better by 100.0 %"
    assert entry["speed"][1]["gain"] == pytest.approx(1.25)


def test_the_largest_batch_that_both_ran_is_compared_and_said():
    made = two().speed("bf16", 2.0, batch=128)
    made.add(
        "throughput", "int8", [{"batch_size": 128, "input_tokens": 128, "output_tokens": 32}], "out_of_memory", "KV"
    )
    _, entry = summarize(made.tables, "bf16")
    assert (entry["speed"][0]["batch_size"], entry["speed"][0]["gain"]) == (64, pytest.approx(2.0))
    assert entry["speed"][0]["caveat"] == "batch 64 is the largest that both ran, of 128 asked"
    assert entry["failures"] == [{"table": "throughput", "status": "out_of_memory", "reason": "KV"}]
    decision = choose([_, entry])[0]
    assert any("of 128 asked" in sentence for sentence in decision["uncertain"])
    assert any("out of memory at some points (KV)" in sentence for sentence in decision["uncertain"])


def test_serving_counts_from_the_schedule():
    made = two()
    for scheme, service in (("bf16", 2.0), ("int8", 1.0)):
        point = {
            "load": "rate",
            "rate_per_s": 4.0,
            "concurrency": None,
            "input_tokens_asked": 64,
            "output_tokens_asked": 8,
        }
        # sent a second late: the wait counts, so 3 s against 2 s, not 2 s against 1 s
        requests = [point | {"scheduled_s": i, "sent_s": i + 1, "finished_s": i + 1 + service} for i in range(20)]
        made.add("serving", scheme, requests)
    speed = {s["metric"]: s for s in summarize(made.tables, "bf16")[1]["speed"]}
    assert speed["e2e_p50"]["gain"] == pytest.approx(1.5)
    assert (speed["e2e_p50"]["load"], speed["e2e_p50"]["level"]) == ("rate", 4.0)
    assert speed["e2e_p50"]["caveat"] is None
    # 20 requests: the slowest of them is faster than the true p99 with chance 0.99^20 = 82 %
    assert "of 20 requests" in speed["e2e_p99"]["caveat"]
    assert (speed["e2e_p99"]["low"], speed["e2e_p99"]["words"]) == (None, "cannot tell (needs 368 requests)")


def test_summary_of_accuracy():
    _, entry = summarize(two(lost=20, won=4).tables, "bf16")
    (found,) = entry["accuracy"]
    # 20 of 400 lost, 4 won: -16/400 = -4 points, p = 2 P(Bin(24, 1/2) <= 4) = 2 * 12951 / 2^24 = 0.001544
    assert (found["lost"], found["won"], found["pairs"]) == (20, 4, 400)
    assert found["difference"] == pytest.approx(-0.04)
    assert found["p"] == pytest.approx(0.001544, abs=1e-6)
    # standard error sqrt((24/400 - 0.04^2) / 400) = 1.21 points; Tango's interval is a little skewed
    assert (found["kind"], found["words"]) == ("worse", "worse by 4.0 points [1.8, 6.7]")
    assert found["baseline_share"] == pytest.approx(0.9)
    # 344 right instead of 360
    assert found["recovery"] == pytest.approx(344 / 360)
    assert found["recovery_low"] < 344 / 360 < found["recovery_high"] < 1
    assert found["bootstrap"] == pytest.approx([-0.065, -0.0175], abs=0.003)
    assert "difference" not in summarize(two().tables, "bf16")[0]["accuracy"][0]


def test_holm_goes_across_schemes_and_raises_the_need():
    # alone: 9 lost, 1 won, p = 2 * 11 / 2^10 = 0.0215: worse. Among three schemes: 0.0645, and not.
    alone = two(lost=9, won=1)
    assert summarize(alone.tables, "bf16")[1]["accuracy"][0]["kind"] == "worse"
    among = two(lost=9, won=1).answers("a", BASE).answers("b", BASE)
    found = summarize(among.tables, "bf16")[1]["accuracy"][0]
    assert found["p_holm"] == pytest.approx(3 * 22 / 1024)
    assert found["words"].startswith("cannot tell (among so many schemes it may be chance")
    assert f"needs {about(found['questions_needed'])} questions" in found["words"]
    assert found["questions_needed"] > summarize(alone.tables, "bf16")[1]["accuracy"][0]["questions_needed"] > 400


def test_pairs_are_by_question_not_by_row():
    made = two(lost=0, won=0)
    made.tables["accuracy"] = list(reversed(made.tables["accuracy"]))
    summary = {entry["scheme"]: entry for entry in summarize(made.tables, "bf16")}
    assert (summary["int8"]["accuracy"][0]["lost"], summary["int8"]["accuracy"][0]["won"]) == (0, 0)


def test_the_strict_filter_decides():
    made = two().answers("bf16", BASE, filter="flexible-extract").answers("int8", BASE, filter="flexible-extract")
    found = {f["filter"]: f["decides"] for f in summarize(made.tables, "bf16")[1]["accuracy"]}
    assert found == {"strict-match": True, "flexible-extract": False}


def test_summary_of_perplexity_and_size():
    made = two().size("bf16", 1000).size("int8", 600)
    for scheme, nats in (("bf16", 1.0), ("int8", 1.1)):
        documents = [
            {"dataset": "d", "document": i, "tokens": 10, "negative_log_likelihood": 10 * nats} for i in range(5)
        ]
        made.add("perplexity", scheme, documents)
    base, entry = summarize(made.tables, "bf16")
    # a tenth of a nat a token more: exp(0.1) = 1.105
    assert entry["perplexity"][0]["ratio"] == pytest.approx(1.10517, abs=1e-5)
    assert entry["perplexity"][0]["words"] == "worse by 10.5 % [10.5, 10.5]"
    assert base["perplexity"][0]["ratio"] is None
    assert entry["size"]["ratio"] == pytest.approx(0.6)
    assert any("perplexity of int8 on d is worse by 10.5 % [" in sentence for sentence in made.decide()["uncertain"])


# --- a baseline that was started twice --------------------------------------------------------------------------------


def started_again(made, table, start=2):
    """The last rows added to a table, as rows of that start."""
    rows = [row for row in made.tables[table] if row["scheme"] == "bf16" and "start" not in row]
    for row in rows:
        row["start"] = start
    return made


def two_starts(first, second, int8, batches=(1, 4, 16, 64)):
    """Latencies by start: the baseline's two, a scheme's one."""
    made = Made()
    for factor, start in ((first, 1), (second, 2)):
        for batch in batches:
            made.speed("bf16", factor[batch], "latency", batch)
        started_again(made, "latency", start)
    for batch in batches:
        made.speed("int8", int8, "latency", batch)
    return made


def test_a_gain_within_the_variation_between_starts_is_none():
    # the baseline's second start is 6 % slower than its first at every batch; a scheme 4 % faster than their mean is not
    # faster than the baseline, though its repeats are +-0.1 %
    slow, fast = dict.fromkeys((1, 4, 16, 64), 1.06), dict.fromkeys((1, 4, 16, 64), 1.0)
    alone = summarize(two_starts(fast, fast, 0.96).tables, "bf16")[1]["batches"]
    assert {found["words"] for found in alone} == {"better by 4.2 %"}
    found = summarize(two_starts(fast, slow, 0.99).tables, "bf16")[1]["batches"][0]
    assert found["words"] == "no significant difference"
    # exp((ln 1 + ln 1.06) / 2) / 0.99: the baseline's speed is the mean of its starts
    assert found["gain"] == pytest.approx(1.06**0.5 / 0.99)
    # ln 1.06 = 0.0583 between two starts: a standard deviation of 0.0583 / sqrt(2) = 4.1 %
    assert (found["starts"], found["start_spread"]) == (2, pytest.approx(0.0412, abs=1e-3))
    assert found["low"] < 1 < found["high"] and found["within"][0] > 1
    # twice as fast is more than starts differ by
    assert summarize(two_starts(fast, slow, 0.5).tables, "bf16")[1]["batches"][0]["low"] > 1


def test_starts_that_agree_leave_a_gain_a_gain():
    near = dict.fromkeys((1, 4, 16, 64), 1.0)
    found = summarize(two_starts(near, near, 0.9).tables, "bf16")[1]["batches"][0]
    assert found["words"] == "better by 11.1 %" and found["start_spread"] == 0.0


def test_a_loss_has_to_show_against_every_start_of_the_baseline():
    # 12 lost against the first start: p = 0.0005. The second start itself has 8 of those wrong: 4 lost, p = 0.125.
    again = flipped(BASE, 8)
    made = Made().answers("bf16", BASE)
    started_again(made, "accuracy", 1).answers("bf16", again)
    started_again(made, "accuracy", 2).answers("int8", flipped(BASE, 12))
    base, entry = summarize(made.tables, "bf16")
    (found,) = entry["accuracy"]
    assert (found["lost"], found["p"], found["kind"]) == (12, pytest.approx(0.125), "unclear")
    # the interval reaches from the lower end against the first start to the upper one against the second
    assert found["difference_low"] < -0.05 and found["difference_high"] > -0.001
    (noise,) = (each["noise"] for each in base["accuracy"])
    assert (noise["starts"], noise["lost"], noise["won"], noise["difference"]) == (2, 8, 0, -0.02)
    assert base["accuracy"][0]["n"] == 400
    # and with one start it is a loss
    made = Made().answers("bf16", BASE).answers("int8", flipped(BASE, 12))
    assert summarize(made.tables, "bf16")[1]["accuracy"][0]["kind"] == "worse"


def fidelity(made, scheme, kl, agreement, start=1):
    """20 documents of 100 tokens; kl and agreement per token, +-10 % from document to document."""
    rows = [
        {"dataset": "d", "document": i, "tokens": 100, "start": start}
        | {"kl_divergence": 100 * kl * (0.9 + 0.01 * i), "top1_agreement": 100 * agreement}
        for i in range(20)
    ]
    return made.add("fidelity", scheme, rows)


def test_summary_of_fidelity():
    made = Made()
    made.tables["fidelity"] = []
    fidelity(fidelity(made, "bf16", 0.001, 0.999, start=2), "int8", 0.02, 0.97)
    base, entry = summarize(fidelity(made, "fp8", 0.001, 0.99).tables, "bf16")[:2]
    (found,) = entry["fidelity"]
    # the mean of 0.9, 0.91, .. 1.09 is 0.995: 0.0199 nats
    assert (found["kl"], found["top1"]) == (pytest.approx(0.0199), pytest.approx(0.97))
    assert found["kl_low"] < 0.0199 < found["kl_high"]
    assert found["words"] == "beyond the baseline's own noise"
    assert base["fidelity"][0]["words"] == "noise floor"
    assert summarize(made.tables, "bf16")[2]["fidelity"][0]["words"] == "within the baseline's own noise"


def test_a_rambling_scheme_is_seen_in_its_lengths():
    made = Made()
    for scheme, tokens in (("bf16", 100), ("int8", 150)):
        made.answers(scheme, BASE)
        for row in made.tables["accuracy"][-len(BASE) :]:
            row |= {"output_tokens": tokens + row["question"] % 7, "cut_off": tokens > 100 and row["question"] % 4 == 0}
    length = summarize(made.tables, "bf16")[1]["accuracy"][0]["length"]
    # 0, 1, .. 6 more tokens in turn, 3 on average: 153 / 103
    assert length["ratio"] == pytest.approx(153 / 103, rel=1e-3) and length["low"] > 1.4
    assert (length["cut_off"], length["baseline_cut_off"], length["kind"]) == (100, 0, "rambling")
    assert summarize(two().tables, "bf16")[1]["accuracy"][0]["length"] is None
