"""Expectations against measurements: met, missed or undecided by the interval, and never where nothing was measured."""

import pytest
from quantbench.errors import UserError
from quantbench.expectations import judge, load_expectations, verdict
from quantbench.gpus import load_gpus
from quantbench.schemes import load_schemes
from quantbench.sections_expected import ends, heading
from quantbench.study import ROOT

FOLDER = ROOT / "config" / "expectations"
FASTER = {"claim": "faster", "schemes": ["int8"], "metric": "throughput", "between": [1.5, 1.8]}


def entry(scheme="int8", gpu="h200", gain=(1.6, 1.55, 1.7), **other):
    batch = {"metric": "throughput", "batch_size": 8, "input_tokens": 64, "output_tokens": 32}
    batch |= dict(zip(("gain", "low", "high"), gain, strict=True))
    found = {"gpu": gpu, "model": "tiny", "scheme": scheme, "is_baseline": False, "batches": [batch], "speed": [batch]}
    return found | {"accuracy": [], "perplexity": [], "size": None} | other


@pytest.mark.parametrize(
    ("between", "low", "high", "word"),
    [
        ((1.5, 1.8), 1.55, 1.7, "met"),
        ((1.5, 1.8), 1.5, 1.8, "met"),
        ((1.5, 1.8), 1.1, 1.49, "missed"),
        ((1.5, 1.8), 1.81, 2.0, "missed"),
        ((1.5, 1.8), 1.4, 1.6, "undecided"),
        ((1.5, 1.8), 1.4, 1.9, "undecided"),
        ((None, 1.8), 0.1, 1.7, "met"),
        ((1.5, None), 1.6, 99, "met"),
        ((1.5, None), 1.0, 1.4, "missed"),
        ((1.5, 1.8), None, None, "undecided"),
    ],
)
def test_an_interval_within_the_ends_meets_one_outside_misses_one_across_decides_nothing(between, low, high, word):
    assert verdict(between, low, high) == word


def test_a_batch_is_judged_once_though_the_summary_has_it_twice():
    (row,) = judge([FASTER], [entry()])
    assert (row["verdict"], row["value"], row["at"]["batch_size"]) == ("met", 1.6, 8)


def test_an_expectation_speaks_of_its_own_place_scheme_and_device_alone():
    elsewhere = FASTER | {"at": {"batch_size": 1}}
    assert [row["verdict"] for row in judge([elsewhere], [entry()])] == ["not measured"]
    assert judge([FASTER | {"gpus": ["b200"]}], [entry()]) == []
    assert judge([FASTER], [entry(scheme="int4")]) == []


def test_recovery_is_judged_by_the_filter_that_decides():
    strict = {"task": "gsm8k", "decides": True, "recovery": 0.995, "recovery_low": 0.991, "recovery_high": 1.0}
    flexible = strict | {"decides": False, "recovery_low": 0.5}
    expected = FASTER | {"metric": "recovery", "between": [0.99, None]}
    (row,) = judge([expected], [entry(accuracy=[flexible, strict])])
    assert (row["verdict"], row["low"]) == ("met", 0.991)


def test_sizes_are_counted_so_their_interval_is_themselves():
    expected = FASTER | {"metric": "size", "between": [None, 0.6]}
    (row,) = judge([expected], [entry(size={"ratio": 0.55})])
    assert (row["verdict"], row["high"]) == ("met", 0.55)


def test_what_a_reader_is_told():
    rows = [{"verdict": word} for word in ("met", "undecided", "met")]
    assert heading(rows) == "Of 3 expectations 2 are met and 1 is undecided"
    assert [ends(each) for each in ([1.5, 1.8], [None, 1.8], [1.5, None])] == [
        "1.50× to 1.80×",
        "at most 1.80×",
        "at least 1.50×",
    ]


def test_the_published_ones_speak_of_schemes_and_devices_that_there_are():
    schemes, gpus = load_schemes(ROOT / "config" / "schemes"), load_gpus(ROOT / "config" / "gpus.yaml")
    published = load_expectations(["published"], FOLDER, ["bf16"])
    assert len(published) > 5
    for one in published:
        assert set(one["schemes"]) <= schemes.keys() and set(one.get("gpus", [])) <= gpus.keys()
        assert "http" in one["source"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("publishd", "expectations[0]: there is no file 'publishd'"),
        (FASTER | {"schemes": ["int9"]}, "expectations[0].schemes: unknown scheme 'int9'; did you mean 'int8'?"),
        (FASTER | {"between": [2, 1]}, "expectations[0].between: [2, 1] has to be a least and a greatest value"),
        (FASTER | {"between": [None, None]}, "expectations[0].between"),
        (FASTER | {"metrics": 1}, "unknown key 'metrics'; did you mean 'metric'?"),
    ],
)
def test_a_wrong_one_is_refused_by_name(asked, said):
    with pytest.raises(UserError) as error:
        load_expectations([asked], FOLDER, ["int8"])
    assert said in str(error.value)
