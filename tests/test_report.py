"""The report as text: what it says, that hostile strings stay text, and that it asks nothing of the network."""

import json
import re
from html import unescape
from pathlib import Path

import polars as pl
import pytest
from quantbench.display import in_short
from quantbench.first_screen import _chance
from quantbench.report import embedded_json, render
from quantbench.tables import write_tables
from render_report import main
from report_page import SECTIONS, copied, hostile_study, only, row_of, specifications, written

ROOT = Path(__file__).parents[1]
HOSTILE = "</script><img src=x onerror=alert(1)>\u2028{{ 7 * 7 }}"


# --- what it says ---------------------------------------------------------------------------------------------------


def test_the_answer_comes_first_and_the_summary_has_the_same_numbers(rendered):
    html, summary = rendered
    answer = summary["answer"][0]
    assert (answer["gpu"], answer["scheme"]) == ("cpu", "int8-smoothquant")
    head, _, rest = answer["sentence"].partition(": ")
    assert f"<b>{head}</b>: {rest}" in html
    assert html.index(head) < html.index("<table")
    row = next(r for r in summary["schemes"] if (r["gpu"], r["scheme"]) == ("cpu", "int8-smoothquant"))
    # The made-up scheme is twice as fast, give or take 1 % of noise on both sides.
    gain = row["throughput_gain"]
    assert gain["low"] <= gain["gain"] <= gain["high"] and gain["gain"] == pytest.approx(2, rel=0.03)
    assert f"{gain['gain']:.2f}×" in row_of(html, "cpu", "int8-smoothquant")
    # One question lost, one won, of 60.
    assert row["accuracy"][0]["difference"] == 0
    # (1.96 + 1.28)^2 * 2/60 / 0.01^2 = 3503, in two digits
    assert "cannot tell (needs about 3,600 questions)" in row_of(html, "cpu", "int8-smoothquant")


@pytest.mark.parametrize(("gain", "said"), [(1.109, True), (1.31, False), (None, False)])
def test_a_gain_no_larger_than_chance_is_called_so_in_the_answer(gain, said):
    gap = {"gpu": "cpu", "model": "tiny", "schemes": ["rtn-int4", "gptq-int4"], "ratio": 1.11}
    decision = {"gpu": "cpu", "model": "tiny", "gain": gain, "latency": None}
    sentences = _chance(decision, gap)
    assert bool(sentences) == said and all("a gain of 1.11× may be such chance" in words for words in sentences)
    # Another device's starts say nothing of this one's.
    assert _chance({**decision, "gpu": "h200"}, gap) == [] == _chance(decision, None)


def test_what_has_no_numbers_says_why_and_looks_different(study):
    manifest, tables = only(study, gpus=["h200"])
    for part in ("points", "skips"):
        manifest[part] = [entry for entry in manifest[part] if entry["scheme"] != "nvfp4"]
    skip = {"stage": "latency", "gpu": "h200", "model": "tiny", "scheme": "nvfp4", "reason": "left out by the plan"}
    manifest["skips"].append(skip)
    for name in ("kernels", "latency", "throughput", "serving", "search", "accuracy", "perplexity", "fidelity", "gemm"):
        frame = tables[name]
        tables[name] = frame.filter(pl.col("scheme") != "nvfp4")
    html, _ = render(manifest, tables)
    assert 'row-skipped"' in row_of(html, "h200", "nvfp4") and "left out by the plan" in row_of(html, "h200", "nvfp4")
    assert 'row-invalid"' in row_of(html, "h200", "int8-online")
    assert "its linear layers ran unquantized" in row_of(html, "h200", "int8-online")
    html, _ = render(*only(study, gpus=["cpu"]))
    row = row_of(html, "cpu", "nvfp4")
    assert 'row-unsupported"' in row and "no CPU kernel computes FP4" in row


def test_kernels_that_broke_their_promise_are_named(study, rendered):
    html, _ = rendered
    computes = study[1]["kernels"].filter(gpu="cpu", scheme="rtn-int4", verdict="computes_other")["computes"][0]
    assert f"computes {computes} instead of w4a16" in html
    assert "silently ran unquantized" in html
    assert f"computes {computes}, not w4a16" in row_of(html, "cpu", "rtn-int4")


def test_a_label_is_in_the_legends_and_names_the_gpu_where_there_are_several(study, rendered):
    computes = study[1]["kernels"].filter(gpu="cpu", scheme="rtn-int4", verdict="computes_other")["computes"][0]
    said = f"computes {computes}, not w4a16"
    for html, where in ((rendered[0], "on cpu "), (render(*only(study, gpus=["cpu"]))[0], "")):
        for name in ("latency", "throughput", "serving", "accuracy", "perplexity", "gemm"):
            legend = html.split(f'<section id="{name}"')[1].split("</section>")[0].split("</ul>")[0]
            (entry,) = [entry for entry in legend.split("<li>") if "</svg>rtn-int4 " in entry]
            assert f'<span class="promise">{where}{said}</span>' in entry
    # On the h200 alone it keeps its promise, and so does the scheme beside it everywhere.
    html, _ = render(*only(study, gpus=["h200"]))
    assert "rtn-int4</li>" in html and said not in html
    assert "int8-smoothquant</li>" in rendered[0]


def test_the_summary_says_what_the_quantized_layers_compute_not_the_head(study):
    kernels = study[1]["kernels"]
    mine = (pl.col("gpu") == "h200") & (pl.col("scheme") == "int8-smoothquant")
    head = kernels.filter(mine).with_columns(
        layer_kind=pl.lit("lm_head"), computes=pl.lit("bf16"), expected=pl.lit("bf16")
    )
    _, summary = render(study[0], {**study[1], "kernels": pl.concat([head, kernels, head])})
    row = next(r for r in summary["schemes"] if (r["gpu"], r["scheme"]) == ("h200", "int8-smoothquant"))
    assert row["computes"] == "w8a8-int8"


def test_a_choice_for_latency_stands_in_the_answer_and_in_the_table(study):
    """Throughput of every scheme a tenth: bf16 wins there, int8-smoothquant stays twice as fast at batch 1."""
    slower = pl.when(pl.col("scheme") == "bf16").then(pl.col("elapsed_s")).otherwise(pl.col("elapsed_s") * 10)
    tables = {**study[1], "throughput": study[1]["throughput"].with_columns(elapsed_s=slower)}
    html, summary = render(*only((study[0], tables), gpus=["h200"]))
    answer = summary["answer"][0]
    assert (answer["scheme"], answer["latency"]["scheme"], answer["latency"]["stops_at"]) == (
        "bf16",
        "int8-smoothquant",
        32,
    )
    assert "<b>On h200, keep tiny in bf16 for throughput</b>:" in html
    assert "<b>For latency at batch 1, serve int8-smoothquant</b>: 2.0" in html
    assert 'good">recommended at batch 1<' in row_of(html, "h200", "int8-smoothquant")
    assert 'good">keep for throughput<' in row_of(html, "h200", "bf16")
    assert "Without numbers:" in html and "int8-online invalid (its linear layers ran unquantized)" in html


def test_long_reasons_are_short_first_and_whole_below(study):
    long = "silently ran unquantized: qkv_proj, o_proj took UnquantizedLinearMethod instead of computing w8a16-int8"
    tables = dict(study[1])
    for name in SECTIONS[:5]:
        whole = pl.when(pl.col("status") == "invalid").then(pl.lit(long)).otherwise(pl.col("reason"))
        tables[name] = tables[name].with_columns(reason=whole)
    html, summary = render(study[0], tables)
    row = row_of(html, "h200", "int8-online")
    assert "vLLM silently ran it unquantized" in row and "qkv_proj" not in row and 'href="#missing"' in row
    assert long in html.split('<section id="missing"')[1]
    assert next(r for r in summary["schemes"] if r["scheme"] == "int8-online")["reason"] == long


@pytest.mark.parametrize(
    ("reason", "short"),
    [
        ("Failed to find a kernel that can implement the NVFP4 linear layer.", "vLLM has no kernel on this device"),
        ("the KV cache needs 1.5 GB. There are 0.5 GB.", "the KV cache needs 1.5 GB"),
        ("no CPU kernel computes FP4", "no CPU kernel computes FP4"),
        ("one line\nanother", "one line"),
        ("x" * 200, "x" * 139 + "…"),
    ],
)
def test_in_short(reason, short):
    assert in_short(reason) == short


def test_a_heading_names_a_loss_and_the_best_without_one(study):
    """int8-smoothquant no faster than bf16, rtn-int4 twice: it loses questions on the h200."""
    latency = study[1]["latency"]
    factor = pl.when(pl.col("scheme") == "int8-smoothquant").then(1.6).when(pl.col("scheme") == "nvfp4").then(0.5)
    tables = {**study[1], "latency": latency.with_columns(elapsed_s=pl.col("elapsed_s") * factor.otherwise(1.0))}
    section = render(*only((study[0], tables), gpus=["h200"]))[0].split('<section id="latency"')[1]
    heading = re.search("<h3>(.*?)</h3>", section).group(1)
    assert re.fullmatch(
        r"At batch 1, nvfp4 is 3\.\d+× as fast as bf16 with a loss of accuracy, without one \S+, 1\.\d+×", heading
    )


def test_the_synthetic_model_is_called_synthetic_and_a_real_one_is_not(study, rendered):
    html, _ = rendered
    accuracy = html.split('<section id="accuracy"')[1].split("</section>")[0]
    assert "planted outlier channels" in accuracy
    manifest = copied(study[0])
    manifest["study"]["models"][0]["source"] = "hf://someone/model@abc"
    assert "planted" not in render(manifest, study[1])[0]


def test_a_p99_of_few_requests_carries_its_caveat(rendered):
    # 20 requests per load.
    assert "The p99 of 20 requests is little more than the slowest one" in rendered[0]


def test_every_chart_has_data_and_a_text_alternative(rendered):
    html, _ = rendered
    charts = specifications(html)
    boxes = re.findall(r'role="img" aria-label="([^"]+)" data-chart="([^"]+)"', html)
    assert len(charts) > 20 and {name for _, name in boxes} == set(charts)
    assert all(re.search(r"\d", words) for words, _ in boxes)
    for chart in charts.values():
        assert any(chart["datasets"].values())


def test_a_scheme_has_one_colour_in_all_charts(rendered):
    colours = {}
    for chart in specifications(rendered[0]).values():
        for layer in chart["layer"]:
            scale = layer.get("encoding", {}).get("color", {}).get("scale")
            for scheme, colour in zip(scale["domain"], scale["range"], strict=True) if scale else ():
                # Sensitivity tells kinds of layers apart.
                if not scheme.endswith("_proj"):
                    colours.setdefault(scheme, set()).add(colour)
    assert len(colours) == 5 and all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 5


def test_it_says_how_to_make_it_again_also_from_a_changed_checkout(study):
    commit = "c" * 40
    assert f"git checkout {commit}\n" in render(*study)[0]
    runs = study[1]["runs"].with_columns(commit=pl.lit(f"{commit}+changed"))
    html, _ = render(study[0], {**study[1], "runs": runs})
    assert f"git checkout {commit}\n" in html and "those changes are not on record" in html


# --- studies that lack something --------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", SECTIONS)
def test_a_stage_left_out_is_not_measured(study, left_out):
    html, _ = render(*only(study, sections=[section for section in SECTIONS if section != left_out]))
    name = "gemm" if left_out == "kernels" else left_out
    section = html.split(f'<section id="{name}"')[1].split("</section>")[0]
    assert "not measured" in section and "data-chart" not in section


def test_nothing_but_loading(study):
    html, summary = render(*only(study, sections=[]))
    assert "not measured" in html and all(row["throughput_gain"] is None for row in summary["schemes"])


@pytest.mark.parametrize("gpu", ["cpu", "h200"])
def test_one_gpu(study, gpu):
    html, summary = render(*only(study, gpus=[gpu]))
    assert {row["gpu"] for row in summary["schemes"]} == {gpu}
    assert f"On {gpu}, serve tiny as int8-smoothquant" in html


@pytest.mark.parametrize("scheme", ["bf16", "rtn-int4"])
def test_one_scheme_with_and_without_a_baseline(study, scheme):
    html, summary = render(*only(study, schemes=[scheme]))
    assert len(summary["schemes"]) == 2 and "Nothing stands beside bf16" in html


def test_everything_unsupported(study):
    manifest, tables = copied(study[0]), {}
    for name, frame in study[1].items():
        if "status" in frame.columns:
            keys = [c for c in ("run_id", "status", "reason", "gpu", "model", "scheme") if c in frame.columns]
            kept = frame.select(keys).unique(maintain_order=True)
            kept = kept.with_columns(status=pl.lit("unsupported"), reason=pl.lit("nothing runs here"))
            frame = pl.concat([frame.clear(), kept], how="diagonal")
        tables[name] = frame
    html, summary = render(manifest, tables)
    assert "nothing can be said about tiny" in html and "data-chart" not in written(html)
    assert {row["status"] for row in summary["schemes"]} == {"unsupported"}


def test_no_table_has_a_row(study):
    html, summary = render(study[0], {name: frame.clear() for name, frame in study[1].items()})
    assert "Nothing can be recommended" in html and len(summary["schemes"]) == 10


# --- hostile strings --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(study):
    return render(*hostile_study(study, HOSTILE))


def test_hostile_strings_are_inert(hostile):
    html, _ = hostile
    # All but the chart library, which is the second script.
    ours = html.split("<script>")[0]
    assert "<img" not in ours and "onerror=alert(1)>" not in ours
    # One element of data a chart, two of the page's own data, and the two scripts that run.
    assert html.count("<script") == len(specifications(html)) + 4 == html.count("</script>")
    assert "\u2028" not in ours.split('id="page-charts">')[1]
    # Escaped, but there; and never run as a template.
    title = re.search(r"<h1>(.*?)</h1>", html).group(1)
    assert "&lt;/script&gt;&lt;img src=x" in title and "{{ 7 * 7 }}" in title
    assert any("onerror" in json.dumps(chart) for chart in specifications(html).values())


def test_embedded_json_cannot_leave_its_element():
    value = {"a": "</script><!--&\u2028\u2029"}
    text = embedded_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value
    with pytest.raises(ValueError):
        embedded_json(float("nan"))


# --- the file -------------------------------------------------------------------------------------------------------


def test_it_is_small_and_asks_nothing_of_the_network(rendered):
    html, _ = rendered
    assert len(html.encode()) < 3e6
    loads = re.findall(r"""(?i)\b(?:src|href|action|poster|data)\s*=\s*["']?([^"'>\s]+)""", written(html))
    assert all(target.startswith("#") for target in loads), loads
    assert not re.search(r"(?i)url\(|@import", html.split("</style>")[0])
    assert not re.search(r"""(?i)(src|href)\s*=\s*["']?https?:|url\(\s*["']?https?:|import\s*\(?\s*["']https?:""", html)
    assert "https://" not in html.split('id="page-charts">')[1].split("</script>")[0]
    # The last word is the browser's.
    policy = unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', html).group(1))
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-eval' 'sha256-")


def test_the_command_writes_both_files(study, tmp_path):
    manifest, tables = study
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    write_tables(tables, tmp_path / "tables")
    html, summary = tmp_path / "out" / "r.html", tmp_path / "out" / "r.summary.json"
    arguments = [f"--manifest={tmp_path}/manifest.json", f"--tables={tmp_path}/tables"]
    arguments += [f"--output={html}", f"--summary={summary}"]
    main(arguments)
    assert html.read_text().startswith("<!doctype html>")
    assert json.loads(summary.read_text())["study"] == "synthetic"
    main([*arguments, "--title=Why?"])
    assert "<h1>Why?</h1>" in html.read_text()
