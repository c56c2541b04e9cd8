"""Decisions on made-up data whose answers are known."""

import itertools
import json

import pytest
from made_tables import BASE, JITTER, Made, flipped, two
from quantbench.decision import choose, label, summarize
from quantbench.tables import build_tables
from synthetic import synthetic_study


def test_the_fastest_that_is_as_accurate_is_chosen():
    made = (
        two(gain=1.5)
        .speed("fast", 0.25)
        .answers("fast", flipped(BASE, lost=40))
        .speed("slow", 0.9)
        .answers("slow", BASE)
    )
    decision = made.size("bf16", 1000).size("int8", 600).decide()
    assert (decision["scheme"], decision["metric"], decision["is_baseline"]) == ("int8", "throughput", False)
    assert decision["gain"] == pytest.approx(1.5)
    sentence = decision["sentence"]
    assert sentence.startswith("On h200, serve m as int8: 1.50 times the throughput of bf16 (95 % interval 1.4")
    assert (
        "at batch 64, 128 tokens in and 32 out; no loss of gsm8k accuracy shown (+0.0 points, −1.7 to +1.7)" in sentence
    )
    assert sentence.endswith("; weights 0.60 times the size.")
    assert decision["latency"] is None
    why = {rejected["scheme"]: rejected["why"] for rejected in decision["rejected"]}
    assert why["fast"].startswith("accuracy on gsm8k worse by 10.0 points [7.")
    assert why["slow"] == "slower than int8, the choice: 1.11 times the speed of bf16"
    assert any("400 questions of gsm8k show a loss of" in sentence for sentence in decision["uncertain"])
    # 8 of 400 answers changed, none lost on balance: (1.96 + 1.28)^2 * 0.02 / 0.01^2 = 2102 questions, in two digits
    unclear = "Whether its gsm8k accuracy is equal within 1 point: cannot tell (needs about 2,200 questions)."
    assert unclear in decision["uncertain"]


def test_a_loss_that_the_sample_could_not_have_shown_does_not_exclude():
    # 4 lost of 400, none won: p = 0.125, a loss of 1 point; the sample shows 1.9 points
    decision = two(lost=4, won=0).decide()
    assert decision["scheme"] == "int8"


def test_a_loss_beyond_what_the_sample_shows_excludes_though_holm_hides_it():
    # 9 lost of 400: 2.25 points, p = 0.0039; among 20 schemes Holm says 0.078. The sample alone shows 1.95 points.
    made = two(lost=9, won=0)
    for i in range(19):
        made.answers(f"s{i}", BASE)
    decision = made.decide()
    assert decision["is_baseline"]
    why = {rejected["scheme"]: rejected["why"] for rejected in decision["rejected"]}
    assert why["int8"].startswith("accuracy on gsm8k −2.2 points, more than the 2.1 that this many questions show: ")
    assert "among so many schemes it may be chance" in why["int8"]


@pytest.mark.parametrize(
    ("gain", "why"), [(1.0, "not significantly faster than bf16: 1.00"), (0.5, "slower than bf16: 0.50")]
)
def test_the_baseline_stays_when_nothing_is_faster(gain, why):
    decision = two(gain=gain).decide()
    assert (decision["scheme"], decision["is_baseline"], decision["gain"]) == ("bf16", True, None)
    assert (
        decision["sentence"] == "On h200, keep m in bf16: no scheme is significantly faster without a loss of accuracy."
    )
    assert decision["rejected"][0]["why"].startswith(why)


def test_a_gain_whose_interval_reaches_one_is_none():
    # the medians say 1.05, but both samples spread by 30 %
    wide = (0.7, 1.0, 1.3)
    made = Made().speed("bf16", 1.05, jitter=wide).speed("int8", 1.0, jitter=wide)
    decision = made.decide()
    assert decision["is_baseline"]
    assert decision["rejected"][0]["why"].startswith("not significantly faster than bf16: 1.05 times (0.")


def test_throughput_is_compared_at_the_largest_batch():
    made = two(gain=2.0).speed("bf16", 1.0, batch=8).speed("int8", 0.9, batch=8)
    speed = summarize(made.tables, "bf16")[1]["speed"]
    assert [(s["metric"], s["batch_size"], s["caveat"]) for s in speed] == [("throughput", 64, None)]


def test_one_repeat_decides_nothing():
    made = Made().speed("bf16", 1.0, jitter=[1]).speed("int8", 0.5, jitter=[1])
    decision = made.decide()
    assert decision["is_baseline"]
    assert "one repeat" in decision["rejected"][0]["why"]
    assert decision["uncertain"] == ["Some speeds come from one repeat and have no interval."]


def test_nothing_measured():
    assert choose(summarize({}, "bf16")) == []
    point = {"batch_size": 64, "input_tokens": 128, "output_tokens": 32}
    made = Made().add("throughput", "bf16", [point], "out_of_memory", "40 GB of 24").speed("int8", 1.0)
    decision = made.decide()
    assert decision["scheme"] is None
    assert decision["sentence"] == (
        "On h200, nothing can be said about m: its baseline, bf16, is out of memory: 40 GB of 24."
    )
    decision = Made().speed("int8", 1.0).decide()
    assert decision["sentence"] == "On h200, nothing can be said about m: the baseline was not measured."


def test_the_baseline_alone():
    decision = Made().speed("bf16", 1.0).decide()
    assert decision["sentence"].endswith("nothing can be recommended over bf16 for m: no other scheme was measured.")


def test_ties_go_to_the_smaller_checkpoint_and_are_said():
    made = Made()
    for scheme, seconds in (("bf16", 1.0), ("big", 0.5), ("small", 0.5)):
        made.speed(scheme, seconds).answers(scheme, BASE)
    decision = made.size("bf16", 1000).size("big", 600).size("small", 400).decide()
    assert decision["scheme"] == "small"
    assert any("not distinguishable from big" in sentence for sentence in decision["uncertain"])


def test_unsupported_and_invalid_are_listed_and_never_chosen():
    made = two(gain=1.2)
    made.add("throughput", "nvfp4", [{}], "unsupported", "no kernel").add(
        "throughput", "online", [{}], "invalid", "unquantized"
    )
    decision = made.speed("liar", 0.1).answers("liar", BASE).ran("liar", "unquantized", "bf16").decide()
    assert decision["scheme"] == "int8"
    why = {rejected["scheme"]: rejected["why"] for rejected in decision["rejected"]}
    assert why["nvfp4"] == "unsupported: no kernel"
    assert why["online"] == "invalid: unquantized"
    assert "ran unquantized" in why["liar"]


def test_a_scheme_that_computes_something_else_is_labelled():
    made = two().ran("int8", "as_promised").ran("int8", "computes_other", computes="w4a8")
    decision = made.decide()
    assert decision["label"] == "int8 (computes w4a8, not w4a16)"
    assert "serve m as int8 (computes w4a8, not w4a16):" in decision["sentence"]
    assert any("those of another computation" in sentence for sentence in decision["uncertain"])
    assert label({"scheme": "x", "verdict": "as_promised"}) == "x"


def test_accuracy_that_was_asked_for_must_be_there():
    made = Made().speed("bf16", 1.0).speed("int8", 0.5).answers("bf16", BASE)
    assert made.decide()["rejected"][0]["why"] == "its accuracy on gsm8k was not measured"
    made = Made().speed("bf16", 1.0).speed("int8", 0.5)
    decision = made.decide()
    assert decision["scheme"] == "int8"
    assert decision["uncertain"] == ["Accuracy was not measured: the choice rests on speed alone."]


@pytest.mark.parametrize(("loss", "chosen"), [(12, True), (40, False)])
def test_a_loss_within_the_margin_does_not_exclude(loss, chosen):
    # 4000 questions: 12 lost, none won, 0.3 points, p = 0.0005, more than the 0.2 that so many questions show, and yet the
    # interval lies within 1 point; 40 lost: 1 point and more
    base = BASE * 10
    made = Made().speed("bf16", 1.0).speed("int8", 0.5).answers("bf16", base).answers("int8", flipped(base, loss))
    decision = made.decide()
    assert decision["is_baseline"] is not chosen
    if chosen:
        assert "; equal within 1 point at 95 % on gsm8k accuracy (−0.3 points, −0.5 to −0.2)" in decision["sentence"]
    else:
        assert decision["rejected"][0]["why"].startswith("accuracy on gsm8k worse by 1.0 points [0.7, 1.4]")


def test_three_questions_are_too_few():
    made = Made().speed("bf16", 1.0).speed("int8", 0.5).answers("bf16", [1, 1, 1]).answers("int8", [1, 1, 1])
    assert made.decide()["rejected"][0]["why"] == "3 questions of gsm8k are too few to show any loss"


def test_every_task_counts():
    made = (
        two()
        .answers("bf16", BASE, task="other", filter="none")
        .answers("int8", flipped(BASE, 50), task="other", filter="none")
    )
    assert made.decide()["rejected"][0]["why"].startswith("accuracy on other worse by 12.5 points")


# --- a choice for latency beside the one for throughput ---------------------------------------------------------------


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
    assert "no loss of gsm8k accuracy shown (+0.0 points, −1.7 to +1.7); weights 0.50 times the size" in said
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


def test_what_has_no_numbers_is_named_in_a_word():
    long = "Failed to find a kernel that can implement the ScaledMM linear layer. Reasons: CPUFp8Kernel requires AMX."
    made = two().add("throughput", "fp8", [{}], "unsupported", long).add("latency", "nvfp4", [{}], "unsupported", long)
    made.add("throughput", "online", [{}], "invalid", "silently ran unquantized: qkv_proj took UnquantizedLinearMethod")
    made.add("throughput", "big", [{}], "out_of_memory", "the KV cache needs 90 GB. 80 GB are there.")
    assert made.decide()["left_out"] == (
        "fp8 and nvfp4 unsupported (vLLM has no kernel on this device); online invalid (vLLM silently ran it "
        "unquantized); big out of memory (the KV cache needs 90 GB)."
    )
    assert two().decide()["left_out"] is None


def test_what_a_kept_baseline_could_not_have_seen():
    # two schemes with 8 and 16 of 400 pairs that differ could have shown losses of 2.0 and 2.9 points
    made = two(gain=0.5).speed("int4", 2.0).answers("int4", flipped(BASE, 8, 8))
    assert made.decide()["uncertain"] == [
        "400 questions of gsm8k show a loss of 2.0 to 2.9 points with a chance of 80 %; a smaller one can hide."
    ]


def kernel_words(made, scheme):
    entry = next(entry for entry in summarize(made.tables, "bf16") if entry["scheme"] == scheme)
    return entry["verdict"], entry["computes"], entry["expected"]


def test_what_a_scheme_computes_is_told_by_the_layers_that_it_quantizes():
    made = two().ran("int8", "as_promised", "w8a8-int8", "w8a8-int8").ran("int8", "as_promised", "bf16", "bf16")
    assert kernel_words(made, "int8") == ("as_promised", "w8a8-int8", "w8a8-int8")
    # the baseline has only layers in 16 bits
    assert kernel_words(two().ran("bf16", "as_promised", "bf16", "bf16"), "bf16") == ("as_promised", "bf16", "bf16")
    # an unknown kernel is no kept promise, whatever the head did
    made = two().ran("int8", "as_promised", "bf16", "bf16").ran("int8", None, None, "w8a8-int8")
    assert kernel_words(made, "int8") == (None, None, "w8a8-int8")


def test_without_throughput_the_latency_decides():
    made = Made()
    for batch, (scheme, seconds) in itertools.product((1, 16), (("bf16", 1.0), ("int8", 0.5))):
        made.speed(scheme, seconds * (1 if batch == 16 else 3), "latency", batch)
    decision = made.decide()
    assert (decision["scheme"], decision["metric"]) == ("int8", "latency")
    assert "2.00 times the speed of a batch of bf16" in decision["sentence"]
    assert "at batch 16" in decision["sentence"]


def test_the_synthetic_study(tmp_path):
    manifest = synthetic_study(tmp_path)
    summary = summarize(build_tables(manifest, tmp_path / "store"), "bf16")
    cpu, h200 = choose(summary)
    assert (cpu["gpu"], cpu["scheme"]) == ("cpu", "int8-smoothquant")
    assert (h200["gpu"], h200["scheme"]) == ("h200", "int8-smoothquant")
    assert h200["gain"] == pytest.approx(2.0, rel=0.03)
    labels = {rejected["scheme"]: (rejected["label"], rejected["why"]) for rejected in cpu["rejected"]}
    assert labels["nvfp4"] == ("nvfp4", "unsupported: no CPU kernel computes FP4")
    assert labels["rtn-int4"][0] == "rtn-int4 (computes w4a8, not w4a16)"
    json.dumps([summary, cpu, h200], allow_nan=False)
