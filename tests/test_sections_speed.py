"""Latency and throughput in the report: phases apart, crossovers said, a workload under its name."""

import polars as pl
from quantbench import sections_speed
from quantbench.report import render
from quantbench.sections import Context
from report_page import only, row_of


def groups(section):
    return {group["kicker"]: group for group in section["groups"]}


def table(group, title):
    return next(more for more in group["more"] if more["title"].startswith(title))


def crossing(study):
    """The study with rtn-int4 twice as fast as bf16 at batch 1, half as fast at batch 16, in every repeat."""
    manifest, tables = only(study, gpus=["h200"])
    factor = pl.when(pl.col("scheme") != "rtn-int4").then(1.0).when(pl.col("batch_size") == 1).then(0.5).otherwise(2.0)
    base = tables["latency"].filter(scheme="bf16")
    rows = pl.concat([base, base.with_columns(scheme=pl.lit("rtn-int4"))])
    changed = {name: pl.col(name) * factor for name in ("elapsed_s", "ttft_s", "tpot_s")}
    return manifest, tables | {"latency": rows.with_columns(**changed)}


def test_a_crossover_is_said_and_in_the_table(study):
    (group,) = sections_speed.latency(Context(*crossing(study)))["groups"]
    # from 2 to 1/2 over four doublings, so 1 after two: batch 4
    assert any(note.startswith("rtn-int4 is faster than bf16 up to batch 4") for note in group["notes"])
    row = table(group, "Crossover")["rows"][0]
    assert row[:3] == ["bf16 / rtn-int4", "latency", "rtn-int4"] and row[3].startswith("4 [") and row[4] == "bf16"


def test_prefill_and_decode_stand_apart(study):
    (group,) = sections_speed.latency(Context(*crossing(study)))["groups"]
    apart = table(group, "Prefill and decode")
    row = next(row for row in apart["rows"] if row[:2] == ["rtn-int4", 1])
    assert [cell.split()[0] for cell in row[3::2]] == ["2.00×", "2.00×"]
    # 2 ms (1 + 1/16) of a batch on the h200, a fifth of it until the first token, the rest for 15 more; half of each
    assert row[2].startswith("21"), row
    assert any(note.startswith("Prefill, until") for note in group["notes"])
    assert [panel["title"].split(",")[0] for panel in group["panels"]] == [
        "Time per batch",
        "Gain over bf16",
        "Prefill",
        "Decode",
    ]


def test_a_study_of_the_baseline_alone_has_no_gains_and_no_pairs(study):
    manifest, tables = only(study, gpus=["h200"])
    rows = {"latency": tables["latency"].filter(scheme="bf16")}
    (group,) = sections_speed.latency(Context(manifest, tables | rows))["groups"]
    assert len(group["panels"]) == 1 and group["notes"] == []
    assert [more["title"] for more in group["more"]] == ["Prefill and decode apart"]


def test_a_workloads_throughput_is_of_all_its_tokens(study):
    manifest, tables = only(study, gpus=["h200"])
    named = {"workload": pl.lit("chat"), "total_output_tokens": pl.lit(1000)}
    named |= {name: pl.lit(None, pl.Int64) for name in ("input_tokens", "output_tokens")}
    rows = tables["throughput"].filter(batch_size=64, status="ok").with_columns(**named, elapsed_s=pl.lit(2.0))
    section = sections_speed.throughput(Context(manifest, tables | {"throughput": rows}))
    (group,) = section["groups"]
    assert group["kicker"] == "h200 · tiny · workload chat"
    assert group["numbers"]["rows"][0][2].startswith("500 tokens/s")
    assert group["numbers"]["rows"][1][3].startswith("1.00×")
    html, _ = render(manifest, tables | {"throughput": rows})
    assert "500 tokens/s" in row_of(html, "h200", "bf16")
