"""A choice for latency beside the one for throughput, on made-up data whose answers are known."""

import pytest
from made_tables import BASE, JITTER, two


def latencies(made, scheme, gains, jitter=JITTER):
    """Latency of `scheme` by batch, that many times faster than the baseline's one second each."""
    for batch, gain in gains.items():
        made.speed(scheme, 1.0 / gain, "latency", batch, jitter)
    return made


def weight_only(int4, lost=4, won=4):
    """bf16 wins at batch 64; int4 is as accurate, 0.5 times the throughput, and by batch as fast as `int4` says."""
    made = latencies(two(gain=0.5, lost=lost, won=won), "bf16", dict.fromkeys(int4, 1.0))
    return latencies(made.size("bf16", 1000).size("int8", 500), "int8", int4)


def test_another_scheme_may_be_the_choice_for_latency():
    decision = weight_only({1: 1.4, 4: 1.2, 16: 0.9}).decide()
    assert (decision["scheme"], decision["metric"]) == ("bf16", "throughput")
    sentence = "On h200, keep m in bf16 for throughput: no scheme is significantly faster at batch 64 without a loss"
    assert decision["sentence"].startswith(sentence)
    latency = decision["latency"]
    assert (latency["scheme"], latency["batch_size"], latency["stops_at"]) == ("int8", 1, 16)
    assert latency["gain"] == pytest.approx(1.4)
    assert latency["low"] < 1.4 < latency["high"]
    said = latency["sentence"]
    assert said.startswith(
        "For latency at batch 1, serve int8: 1.40 times as fast as bf16 (95 % interval 1.37 to 1.43); "
    )
    assert (
        "no significant difference in gsm8k accuracy (+0.0 points, −1.5 to +1.5); weights 0.50 times the size" in said
    )
    assert "from batch 16 on it is not significantly faster (0.90 times there, 0.88 to 0.92)" in said
    # 8 of 400 pairs differ: the loss that they show is said for the scheme that is served somewhere
    assert any(sentence.startswith("400 questions of gsm8k show a loss of") for sentence in decision["uncertain"])


def test_the_throughput_points_belong_to_the_batches_at_which_it_pays():
    # 1.4 times at batches 1 and 16, half the speed at batch 64, which is a throughput point
    latency = weight_only({1: 1.4, 16: 1.4}).decide()["latency"]
    assert latency["stops_at"] == 64
    # with another length it says nothing about this one
    made = weight_only({1: 1.4, 16: 1.4})
    for row in made.tables["latency"]:
        row["output_tokens"] = 8
    latency = made.decide()["latency"]
    assert latency["stops_at"] is None
    assert latency["sentence"].endswith("; it still pays at batch 16, the largest measured.")


def test_a_batch_that_does_not_pay_between_two_that_do_is_no_end():
    assert weight_only({1: 1.4, 4: 1.0, 16: 1.4}).decide()["latency"]["stops_at"] == 64
    assert weight_only({1: 1.4, 4: 1.0, 16: 0.9}).decide()["latency"]["stops_at"] == 4


def test_a_latency_gain_with_a_loss_or_without_an_interval_is_no_choice():
    assert weight_only({1: 1.4}, lost=40).decide()["latency"] is None
    made = latencies(latencies(two(gain=0.5), "bf16", {1: 1.0}, [1]), "int8", {1: 1.4}, [1])
    assert made.decide()["latency"] is None


def test_the_smallest_batch_at_which_it_differs_is_told():
    latency = weight_only({1: 1.0, 4: 1.3, 16: 1.2}).decide()["latency"]
    assert (latency["scheme"], latency["batch_size"], latency["stops_at"]) == ("int8", 4, 64)


def test_the_choice_for_throughput_may_be_that_for_latency_too():
    made = latencies(latencies(two(gain=2.0), "bf16", {1: 1.0}), "int8", {1: 1.5})
    decision = made.decide()
    assert decision["scheme"] == decision["latency"]["scheme"] == "int8"
    assert not decision["latency"]["differs"]
    assert decision["latency"]["sentence"] == (
        "At batch 1 it is also the choice for latency: 1.50 times as fast as bf16 (95 % interval 1.47 to 1.53)."
    )


def test_a_tie_in_latency_is_no_reason_for_a_second_scheme():
    made = latencies(latencies(two(gain=2.0), "bf16", {1: 1.0}), "int8", {1: 1.5})
    made.speed("int4", 1.0 / 1.2).answers("int4", BASE)
    latencies(made, "int4", {1: 1.51})
    assert made.decide()["latency"]["scheme"] == "int8"
    # Far enough apart, it is: 1.8 against 1.5.
    made = latencies(latencies(two(gain=2.0), "bf16", {1: 1.0}), "int8", {1: 1.5})
    made.speed("int4", 1.0 / 1.2).answers("int4", BASE)
    latency = latencies(made, "int4", {1: 1.8}).decide()["latency"]
    assert (latency["scheme"], latency["differs"], latency["stops_at"]) == ("int4", True, None)


def test_the_baseline_may_stay_for_latency():
    made = latencies(latencies(two(gain=2.0), "bf16", {1: 1.0}), "int8", {1: 0.65})
    latency = made.decide()["latency"]
    assert (latency["scheme"], latency["gain"]) == ("bf16", None)
    assert latency["sentence"] == (
        "For latency at batch 1, bf16 stays the choice: int8 is 0.65 times as fast (95 % interval 0.64 to 0.66), and "
        "no other scheme is significantly faster without a loss of accuracy."
    )
