"""Two studies side by side: what is compared, what counts as changed, and which field of the identities differs."""

import json
import random

import polars as pl
import pytest
from quantbench.compare_studies import compare, comparison_text, find_other
from quantbench.errors import UserError
from quantbench.tables import write_tables
from report_page import copied


def _again(study, **factors):
    """The study measured once more: other runs and 0.1 % of noise; {table: factor} on the times of rtn-int4 on the h200."""
    draw = random.Random(1).gauss
    mine = (pl.col("gpu") == "h200") & (pl.col("scheme") == "rtn-int4")
    tables = dict(study[1])
    for name in ("latency", "throughput", "serving", "accuracy", "perplexity", "gemm"):
        tables[name] = tables[name].with_columns(run_id=pl.col("run_id") + "-again")
    for name in ("latency", "throughput"):
        noise = pl.Series("noise", [1 + draw(0, 0.001) for _ in range(len(tables[name]))])
        factor = pl.when(mine).then(factors.get(name, 1.0)).otherwise(1.0)
        tables[name] = tables[name].with_columns(elapsed_s=pl.col("elapsed_s") * factor * noise)
    return copied(study[0]), tables


def test_a_study_beside_itself_is_the_same_measurement(study):
    found = compare(study, study)
    assert found["changes"] == [] and found["same"] > 20 and found["fields"] == {}
    assert found["only_here"] == found["only_there"] == []
    assert "nothing that is known to matter differs" in comparison_text("itself", found)


def test_a_scheme_that_became_slower_stands_out_and_nothing_else(study):
    found = compare(study, _again(study, latency=1.3))
    changed = [change for change in found["changes"] if change["significant"]]
    assert changed and {change["metric"] for change in changed} == {"latency"}
    assert all(change["what"].startswith("h200/tiny/rtn-int4") for change in changed)
    # 1.3 times as long, give or take the noise of both.
    assert all(change["low"] <= 1.3 * 1.01 and change["high"] >= 1.3 * 0.99 for change in changed)
    text = comparison_text("before", found)
    assert "1.3" in text.split("## What changed")[1].split("No significant")[0]


def test_answers_are_paired_by_question(study):
    there = _again(study)
    mine = (pl.col("gpu") == "h200") & (pl.col("scheme") == "bf16") & (pl.col("question") < 20)
    accuracy = there[1]["accuracy"].with_columns(correct=pl.when(mine).then(False).otherwise(pl.col("correct")))
    found = compare((there[0], there[1] | {"accuracy": accuracy}), study)
    changed = [c for c in found["changes"] if c["metric"] == "accuracy" and c["change"]]
    (change,) = [c for c in changed if "strict-match" in c["what"]]
    right = study[1]["accuracy"].filter(mine, pl.col("correct"), filter="strict-match")
    # All that was right of the first 20 questions was wrong there.
    assert change["what"].startswith("h200/tiny/bf16") and change["change"] == pytest.approx(len(right) / 60)
    assert change["significant"]


def test_the_field_that_differs_is_named_with_its_points(study):
    there = copied(study[0])
    points = [point for point in there["points"] if point["stage"] == "latency"]
    for point in points:
        point["key"] = point["key"][::-1]
        point["identity"]["versions"] = {**point["identity"].get("versions", {}), "vllm": "0.1"}
    found = compare((there, study[1]), study)
    (field,) = found["fields"]
    assert field.startswith("versions.vllm 0.1 -> ") and found["fields"][field] == len(points)


def test_points_of_one_side_are_named(study):
    there = copied(study[0])
    there["points"] = [point for point in there["points"] if point["stage"] != "serving"]
    found = compare((there, study[1]), study)
    assert found["only_there"] == [] and "serving of h200/tiny/bf16" in found["only_here"]


def test_what_to_compare_with_is_found_or_refused(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tables(study[1], tmp_path / "results" / "before" / "tables")
    (tmp_path / "results" / "before" / "manifest.json").write_text(json.dumps(study[0]))
    for name in ("before", str(tmp_path / "results" / "before")):
        manifest, tables = find_other(name, {})
        assert manifest["study"]["study"] == "synthetic" and len(tables["latency"]) == len(study[1]["latency"])
    for name in ("", "nothing"):
        with pytest.raises(UserError, match="compare=.*the name of a study"):
            find_other(name, study[0])
