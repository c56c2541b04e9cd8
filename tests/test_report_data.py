"""What the report carries for its script: raw tables, points and logs, within a size that fits a mail."""

import csv
import io
import json

import polars as pl
import pytest
from quantbench import report
from quantbench.report import render
from quantbench.report_data import _tables, embedded, excerpt, packed
from report_page import embedded as carried
from report_page import specifications, unpacked


def _records(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def large(study):
    """The study with hundreds of times the repeats and requests: more than 100,000 rows."""
    tables = dict(study[1])
    for name, copies in (("latency", 500), ("throughput", 500), ("serving", 150)):
        frame = pl.concat([tables[name]] * copies)
        # As long in digits as a measured time: copies would pack to nothing.
        jitter = 1 + 0.001 * pl.int_range(pl.len()).hash(seed=1).cast(pl.Float64) / 2.0**64
        times = ("elapsed_s", "ttft_s", "latency_s", "first_token_s", "finished_s")
        timed = [(pl.col(column) * jitter).alias(column) for column in times if column in frame.columns]
        tables[name] = frame.with_columns(timed)
    return study[0], tables


def test_a_hundred_thousand_rows_are_a_page_that_fits_a_mail(rendered, large):
    assert sum(map(len, large[1].values())) > 100_000
    html, _ = render(*large)
    assert len(html.encode()) < 5e6
    # Charts hold one mark per scheme and point, however many repeats stand behind it.
    marks = [[len(rows) for rows in chart["datasets"].values()] for chart in specifications(html).values()]
    few = [[len(rows) for rows in chart["datasets"].values()] for chart in specifications(rendered[0]).values()]
    assert marks == few and max(map(max, marks)) < 100
    # With little room the small tables come first.
    data = embedded(*large, room=300_000)["tables"]
    assert data["serving"]["packed"] is None and data["runs"]["packed"] and data["kernels"]["packed"]
    assert sum(len(table["packed"] or "") for table in data.values()) < 300_000


def test_a_table_fits_only_once_packed_it_is_no_larger_than_the_room(study):
    frame = study[1]["latency"]
    size = len(packed(frame.write_csv()))
    assert _tables({"latency": frame}, size)["latency"]["packed"]
    assert _tables({"latency": frame}, size - 1)["latency"]["packed"] is None


def test_a_table_that_does_not_fit_is_named_with_its_place(study, monkeypatch):
    monkeypatch.setattr(report, "MOST_BYTES", 0)
    html, _ = render(*study)
    assert "too large for this page: results/synthetic/tables/serving.csv" in html
    assert all(table["packed"] is None for table in carried(html, "page-data")["tables"].values())


def test_many_charts_are_folded_and_unfold_to_what_they_were(study, rendered, monkeypatch):
    monkeypatch.setattr(report, "MOST_CHARTS", 10)
    html, _ = render(*study)
    # Two gpus: of each section the first is shown, the second packed.
    packs = [part.split('"')[0] for part in html.split('data-pack="')[1:]]
    assert len(html) < len(rendered[0]) and len(packs) > 5
    whole = rendered[0].split('<section id="latency"')[1].split("</section>")[0]
    inside = next(
        text for text in map(unpacked, packs) if "h200 · tiny · 64" in text or "Tokens per second" not in text
    )
    heading = inside.split("<h3>")[1].split("</h3>")[0]
    assert heading in whole
    assert len(specifications(html)) + sum(text.count("data-chart=") for text in map(unpacked, packs)) == len(
        specifications(rendered[0])
    )


def test_the_page_carries_every_table_and_every_point(study, rendered):
    data = carried(rendered[0], "page-data")
    for name, frame in study[1].items():
        if len(frame):
            assert unpacked(data["tables"][name]["packed"]) == frame.write_csv()
    points = _records(unpacked(data["points"]))
    assert [point["key"] for point in points] == [point["key"][:16] for point in study[0]["points"]]
    # A number's columns find its rows and its one point.
    at = {"gpu": "h200", "model": "tiny", "scheme": "rtn-int4", "batch_size": 32}
    mine = [p for p in points if p["table"] == "latency" and all(p[n] == at[n] for n in ("gpu", "model", "scheme"))]
    mine = [p for p in mine if json.loads(p["columns"])["batch_size"] == 32]
    assert len(mine) == len(study[1]["latency"].filter(**at).select("input_tokens", "output_tokens").unique())


def test_the_command_names_the_job_that_measures_a_table(rendered):
    jobs = carried(rendered[0], "page-data")["jobs"]
    assert jobs["latency"] == "results/synthetic/engine/{gpu}/{model}/{scheme}.json" == jobs["accuracy"]
    assert jobs["gemm"] == "results/synthetic/kernels/{gpu}.json"
    assert jobs["serving"] == "results/synthetic/serving/{gpu}/{model}/{scheme}.json"


def test_the_end_of_a_log_without_what_a_terminal_makes_of_it(tmp_path):
    lines = [f"line {number}" for number in range(20)] + ["\x1b[32m10 %\r\x1b[0m100 %", "x" * 500]
    (tmp_path / "a.log").write_text("\n".join(lines))
    shown = excerpt(tmp_path / "a.log").split("\n")
    assert len(shown) == 12 and shown[0] == "line 10" and shown[-2:] == ["100 %", "x" * 200]
    assert excerpt(tmp_path / "none.log") == ""


def test_logs_are_read_below_the_folder_they_name(study, tmp_path):
    run = study[1]["runs"].row(0, named=True)
    (tmp_path / run["log"]).parent.mkdir(parents=True)
    (tmp_path / run["log"]).write_text("it ended\n")
    data = embedded(*study, room=5_000_000, logs=tmp_path)
    found = {entry["run_id"]: entry["log"] for entry in _records(unpacked(data["logs"]))}
    assert found[run["run_id"]] == "it ended"
