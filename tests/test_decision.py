"""Comparisons and decisions on made-up data whose answers are known."""

import itertools
import json

import pytest
from made_tables import BASE, Made, flipped, two
from quantbench.comparison import NO_DIFFERENCE
from quantbench.decision import accuracy_words, choose, label, percent, summarize, verdict_words
from quantbench.tables import build_tables
from synthetic import synthetic_study


def test_words():
    assert verdict_words(1.2, 1.1, 1.3, neutral=1, show=percent) == "better by 20.0 %"
    assert verdict_words(0.8, 0.7, 0.9, neutral=1, show=percent) == "worse by 20.0 %"
    assert verdict_words(1.2, 0.9, 1.5, neutral=1, show=percent) == NO_DIFFERENCE
    assert verdict_words(1.2, 1.0, 1.5, neutral=1, show=percent) == NO_DIFFERENCE
    assert verdict_words(1.2, None, None, neutral=1, show=percent) == "cannot tell (needs more repeats)"


def test_accuracy_words():
    assert accuracy_words(-0.05, -0.08, -0.02, 0.001, 200) == "worse by 5.0 points"
    assert accuracy_words(0.05, 0.02, 0.08, 0.001, 200) == "better by 5.0 points"
    assert accuracy_words(-0.01, -0.04, 0.02, 0.6, 5000) == NO_DIFFERENCE
    # the interval leaves zero out, the test among several does not: the sample is too small to say
    words = "cannot tell (among so many schemes it may be chance; about 300 questions would tell)"
    assert accuracy_words(-0.05, -0.08, -0.02, 0.08, 300) == words
    assert accuracy_words(0.0, None, None, 1.0, None) == "cannot tell (needs more questions)"


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
    # three repeats of +-1 % each: the ratio of medians lies within 0.99/1.01 and 1.01/0.99 of 2
    assert 1.96 <= entry["speed"][0]["low"] < 2 < entry["speed"][0]["high"] <= 2.041
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
    assert "of 20 requests" in speed["e2e_p99"]["caveat"]


def test_summary_of_accuracy():
    _, entry = summarize(two(lost=20, won=4).tables, "bf16")
    (found,) = entry["accuracy"]
    # 20 of 400 lost, 4 won: -16/400 = -4 points, p = 2 P(Bin(24, 1/2) <= 4) = 2 * 12951 / 2^24 = 0.001544
    assert (found["lost"], found["won"], found["pairs"]) == (20, 4, 400)
    assert found["difference"] == pytest.approx(-0.04)
    assert found["p"] == pytest.approx(0.001544, abs=1e-6)
    assert found["words"] == "worse by 4.0 points"
    assert found["baseline_share"] == pytest.approx(0.9)
    assert "difference" not in summarize(two().tables, "bf16")[0]["accuracy"][0]


def test_holm_goes_across_schemes_and_raises_the_need():
    # alone: 9 lost, 1 won, p = 2 * 11 / 2^10 = 0.0215: worse. Among three schemes: 0.0645, and not.
    alone = two(lost=9, won=1)
    assert summarize(alone.tables, "bf16")[1]["accuracy"][0]["words"].startswith("worse")
    among = two(lost=9, won=1).answers("a", BASE).answers("b", BASE)
    found = summarize(among.tables, "bf16")[1]["accuracy"][0]
    assert found["p_holm"] == pytest.approx(3 * 22 / 1024)
    assert found["words"].startswith("cannot tell (among so many schemes it may be chance")
    assert f"about {found['questions_needed']} questions would tell" in found["words"]
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
    assert entry["perplexity"][0]["words"] == "worse by 10.5 %"
    assert base["perplexity"][0]["ratio"] is None
    assert entry["size"]["ratio"] == pytest.approx(0.6)
    assert any("perplexity of int8 on d is worse by 10.5 %" in sentence for sentence in made.decide()["uncertain"])


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
        "at batch 64, 128 tokens in and 32 out; no significant difference in gsm8k accuracy (+0.0 points, " in sentence
    )
    assert sentence.endswith("; weights 0.60 times the size.")
    assert decision["latency"] is None
    why = {rejected["scheme"]: rejected["why"] for rejected in decision["rejected"]}
    assert why["fast"].startswith("accuracy on gsm8k worse by 10.0 points")
    assert why["slow"] == "slower than int8, the choice: 1.11 times the speed of bf16"
    assert any("400 questions of gsm8k show a loss of" in sentence for sentence in decision["uncertain"])


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
    # two schemes with 8 and 16 of 400 pairs that differ could have shown losses of 2.0 and 2.8 points
    made = two(gain=0.5).speed("int4", 2.0).answers("int4", flipped(BASE, 8, 8))
    assert made.decide()["uncertain"] == [
        "400 questions of gsm8k show a loss of 2.0 to 2.8 points with a chance of 80 %; a smaller one can hide."
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
