"""The report's decision under constraints, on the made-up study: what it says, and what it says is missing."""

import polars as pl
import pytest
from quantbench.sections import Context
from quantbench.sections_decision import decision
from quantbench.study_constraints import reference_faults
from report_page import copied


@pytest.fixture(scope="module")
def made(study):
    """made(constraints, prices, slo=...) -> the section of the made-up study, and its group.

    Of rates the search's loads alone are left, each of so many requests that chance decides none of them: bf16 meets the SLO
    at 4 a second and not at 5.66; rtn-int4 and nvfp4 at 5.66 and not at 8; int8-smoothquant at 8 and not at 16.
    """
    tables = dict(study[1])
    tables["search"] = tables["search"].with_columns(pl.col("requests") * 100)
    tables["serving"] = tables["serving"].filter(pl.col("load") != "rate")

    def make(constraints, prices, **serving):
        manifest = copied(study[0])
        manifest["study"] |= {} if constraints is None else {"constraints": constraints}
        manifest["study"]["serving"] |= serving
        for gpu, price in prices.items():
            manifest["gpus"][gpu]["price_usd_per_hour"] = price
        section = decision(Context(manifest, tables))
        return section, section and (section["groups"] or [None])[0]

    return make


def test_a_study_without_constraints_has_no_such_section(made):
    assert made(None, {})[0] is None


def test_without_an_slo_or_prices_it_says_what_is_missing(made):
    section, _ = made({}, {"cpu": 0.5}, slo=None)
    assert section["missing"].startswith("The study has constraints but no serving.slo")
    section, group = made({}, {})
    assert section["missing"] is None and "prices_usd_per_hour" in group["notes"][0]
    assert group["heading"].startswith("Within the constraints: ") and group["heading"].endswith("takes prices")
    assert group["panels"] == [] and {row[4] for row in group["table"]["rows"]} == {"–"}


def test_it_names_the_cheapest_how_sure_that_is_and_from_where_on_another_is(made):
    section, group = made({"recovery": 0.9, "load_per_s": 20}, {"cpu": 0.5, "h200": 4})
    assert "at least 90.0 % as many right answers as bf16’s" in section["intro"]
    # 20 a second on copies of 8: three, at 0.50 $
    assert group["heading"] == "Cheapest within the constraints: int8-smoothquant on cpu, $1.50 an hour"
    rows = {tuple(row[:2]): row[2:] for row in group["table"]["rows"]}
    assert rows["int8-smoothquant", "cpu"][:5] == [
        "yes",
        "8 [8, 16]",
        # 0.50 $ an hour for 8 x 16 tokens a second
        "$1.09 [$0.543, $1.09]",
        "3 [2, 3]",
        "$1.50 [$1.00, $1.50]",
    ]
    # rtn-int4 lost 10 % of the questions: undecided at a floor of 90 %
    assert rows["rtn-int4", "cpu"][0] == "undecided" and rows["nvfp4", "h200"][0] == "no"
    said = "\n".join(group["notes"])
    assert "Runner-up: bf16 on cpu, $2.50 an hour." in said
    assert "3 devices of cpu carry up to 24 requests/s with int8-smoothquant." in said
    reasons = {tuple(row[:2]): row[-1] for row in group["numbers"]["rows"]}
    assert reasons["nvfp4", "cpu"] == "unsupported: no CPU kernel computes FP4"
    assert "about 2,537 questions would tell" in reasons["rtn-int4", "cpu"]
    assert [table["title"] for table in group["more"]] == [
        "Pareto front: accuracy on gsm8k and cost",
        "Pareto front: interactivity and throughput per device",
    ]


def test_few_requests_leave_it_open_and_say_how_many_would_tell(study):
    manifest = copied(study[0])
    manifest["study"]["constraints"] = {}
    manifest["gpus"]["cpu"]["price_usd_per_hour"] = 0.5
    (group,) = decision(Context(manifest, study[1]))["groups"]
    assert group["heading"].startswith("No scheme is certain to meet the constraints; likeliest to be the cheapest")
    assert "about 139 requests at 1 request/s would tell" in "".join(group["notes"]) and group["panels"] == []


def test_what_cannot_be_met_says_so(made):
    _, group = made({"usd_per_hour": 0.1}, {"cpu": 0.5, "h200": 4})
    assert group["heading"] == "No scheme meets the constraints" and group["panels"] == []


def test_constraints_on_what_is_not_measured_are_refused_by_name():
    faults = reference_faults(
        {"constraints": {"recovery": 0.99, "load_per_s": 4}, "serving": {"request_rates": ["inf"]}}
    )
    assert [fault.partition(":")[0] for fault in faults] == ["constraints.recovery", "constraints.load_per_s"]
    assert "serving.request_rates" in faults[1]
    measured = {"accuracy": [{}], "serving": {"request_rates": [1]}}
    assert reference_faults({"constraints": {"recovery": 0.99, "load_per_s": 4}} | measured) == []
    assert reference_faults({}) == reference_faults({"constraints": {}}) == []
