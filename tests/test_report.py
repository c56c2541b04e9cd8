"""The report as text: what it says, that hostile strings stay text, and that it asks nothing of the network."""

import json
import re
from html import unescape
from pathlib import Path

import polars as pl
import pytest
from quantbench.display import in_short
from quantbench.published import COLUMNS, load_published
from quantbench.report import embedded_json, render
from quantbench.sections_kernels import crossover_words
from quantbench.tables import build_tables, write_tables
from render_report import main
from synthetic import synthetic_study

ROOT = Path(__file__).parents[1]
HOSTILE = "</script><img src=x onerror=alert(1)>\u2028{{ 7 * 7 }}"
SECTIONS = ("latency", "throughput", "serving", "accuracy", "perplexity", "kernels")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    manifest = synthetic_study(root)
    return manifest, build_tables(manifest, root / "store")


@pytest.fixture(scope="module")
def rendered(study):
    return render(*study)


def copied(manifest):
    return json.loads(json.dumps(manifest))


def only(study, *, gpus=None, schemes=None, sections=SECTIONS):
    """The study cut down: fewer gpus or schemes, or stages that its config leaves out."""
    manifest, tables = copied(study[0]), dict(study[1])
    config = manifest["study"]
    config["gpus"], config["schemes"] = gpus or config["gpus"], schemes or config["schemes"]
    stages = {"probe", "load", *("gemm" if section == "kernels" else section for section in sections)}
    for part in ("points", "skips"):
        manifest[part] = [
            entry
            for entry in manifest[part]
            if (entry["stage"] in stages and entry["gpu"] in config["gpus"])
            and entry["scheme"] in (None, *config["schemes"])
        ]
    for section in set(SECTIONS) - set(sections):
        del config[section]
        table = "gemm" if section == "kernels" else section
        tables[table] = tables[table].clear()
    for name, frame in tables.items():
        if "scheme" in frame.columns:
            # Contenders have none.
            frame = frame.filter(pl.col("scheme").is_in(config["schemes"]) | pl.col("scheme").is_null())
        if "gpu" in frame.columns:
            frame = frame.filter(pl.col("gpu").is_in(config["gpus"]))
        tables[name] = frame
    return manifest, tables


def written(html):
    """The page without scripts and style: what is said."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)


def specifications(html):
    embedded = re.search(r'<script type="application/json" id="specs">(.*?)</script>', html, re.DOTALL).group(1)
    return json.loads(embedded)["specs"]


def row_of(html, gpu, scheme):
    """The scheme's row of the first table, below the gpu's heading."""
    first = written(html).split('class="scroll first')[1].split("</table>")[0]
    body = next(body for body in first.split("<tbody>")[1:] if f"<span>{gpu} " in body)
    return next(row for row in body.split("<tr ") if f'<th scope="row">{scheme}<' in row)


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
    assert "no significant difference" in row_of(html, "cpu", "int8-smoothquant")


def test_what_has_no_numbers_says_why_and_looks_different(study):
    manifest, tables = only(study, gpus=["h200"])
    for part in ("points", "skips"):
        manifest[part] = [entry for entry in manifest[part] if entry["scheme"] != "nvfp4"]
    skip = {"stage": "latency", "gpu": "h200", "model": "tiny", "scheme": "nvfp4", "reason": "left out by the plan"}
    manifest["skips"].append(skip)
    for name in ("kernels", "latency", "throughput", "serving", "accuracy", "perplexity", "gemm"):
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


def test_a_layer_that_no_scheme_quantizes_is_drawn_once(rendered):
    section = rendered[0].split('<section id="gemm"')[1].split("</section>")[0]
    assert "lm_head: left in 16 bits by the other schemes too" in section
    assert len(re.findall(r'<th scope="row">[^<]*</th><td class="num">lm_head<', section)) == 4  # 2 gpus, M 1 and 256


def section_of(html, name):
    return html.split(f'<section id="{name}"')[1].split("</section>")[0]


def folded(html, summary):
    """The first folded part of that name."""
    return html.split(f"<summary>{summary}</summary>")[1].split("</details>")[0]


def cells_of(part):
    """[[cell, ...]] of a table, without its head, as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", part.split("<tbody>")[1], re.DOTALL)
    return [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


@pytest.fixture(scope="module")
def products(rendered):
    """{gpu: its part of the section on matrix products}."""
    parts = section_of(rendered[0], "gemm").split('<p class="kicker">')[1:]
    return {part.split(" ")[0]: part for part in parts}


def test_predicted_and_observed_speedups_are_side_by_side(products):
    found = {
        tuple(row[:3]): row[3:]
        for row in cells_of(folded(products["cpu"], "Speedup over bf16: predicted and observed"))
    }
    # bf16 moves 2 (512 x 256 + 256 + 512) bytes, int8 512 x 256 + 4 x 512 + 2 (256 + 512): 263680 / 134656 = 1.96
    predicted, observed = found["int8-smoothquant", "qkv_proj", "1"]
    assert predicted == "1.96×" and 1.96 < float(observed.split("×")[0]) < 2.04 and "[" in observed
    # the cpu's int4 kernel computes w4a8, at twice the rate of bf16
    assert found["rtn-int4", "down_proj", "256"][0] == "2.00×"
    assert found["rtn-int4", "down_proj", "256"][1].startswith(("0.79×", "0.80×", "0.81×"))
    assert not any(row[1] == "lm_head" or row[0] == "bf16" for row in found)


def test_crossovers_are_said_in_words(products):
    words = {(row[0], row[1]): row[3] for row in cells_of(folded(products["h200"], "Up to which M it pays"))}
    assert words["int8-smoothquant", "qkv_proj"] == "pays at every M measured, 1 to 256"
    # 1.5 at M = 1, 0.8 at M = 256: log 1.5 / (log 1.5 + log 1.25) = 0.645 of the way, 256^0.645 = 35.7
    m, low, high = map(
        float, re.fullmatch(r"pays up to M = (\d+) \[(\d+), (\d+)\]", words["rtn-int4", "qkv_proj"]).groups()
    )
    assert low <= m <= high and m == pytest.approx(35.7, rel=0.15)
    assert ("marlin-w4a16", "qkv_proj") in words and ("nvfp4", "lm_head") not in words


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ({"outcome": "always", "unclear": [64]}, "pays at every M measured, 1 to 64; not significantly at M = 64"),
        ({"outcome": "never"}, "pays at no M measured, 1 to 64"),
        ({"outcome": "stops", "at": 3.21, "interval": False}, "pays up to M = 3.2"),
        ({"outcome": "stops", "at": 60.0, "low": 30.0, "high_open": True}, "pays up to M = 60 [30, > 64]"),
        ({"outcome": "starts", "at": 2.0, "high": 4.0, "low_open": True}, "pays from M = 2.0 [< 1, 4.0] on"),
        (
            {"outcome": "stops", "at": 8.0, "interval": False, "then": [("starts", 32.0), ("stops", 48.0)]},
            "pays up to M = 8.0; again from M = 32; no longer from M = 48",
        ),
    ],
)
def test_crossover_words(outcome, words):
    plain = {"tokens": [1, 64], "at": None, "low": None, "high": None, "low_open": False, "high_open": False}
    assert crossover_words(plain | {"interval": True, "then": [], "unclear": []} | outcome) == words


def test_the_fastest_is_named_or_the_tie(products):
    html = products["h200"]
    schemes = {row[0]: row[1:] for row in cells_of(folded(html, "The fastest scheme, by layer and M"))}
    assert schemes["qkv_proj"][0].startswith("int8-smoothquant, by 1.1") and "lm_head" not in schemes
    # Both twice as fast, give or take 1 % of noise.
    assert schemes["down_proj"][0] in ("int8-smoothquant ≈ rtn-int4", "rtn-int4 ≈ int8-smoothquant")
    everyone = {row[0]: row[1:] for row in cells_of(folded(html, "The fastest of all, by layer and M"))}
    # int8-mm is faster still, but leaves quantizing out.
    assert everyone["qkv_proj"][0].startswith("marlin-w4a16, by 1.5")


def test_contenders_stand_apart_and_those_not_timed_say_why(rendered, products):
    cpu, h200 = products["cpu"], products["h200"]
    assert {row[0] for row in cells_of(folded(cpu, "Also timed: 1 other kernel"))} == {"int8-mm"}
    rows = cells_of(folded(h200, "Also timed: 2 other kernels"))
    assert {(row[0], row[8]) for row in rows} == {("int8-mm", "quantizing left out"), ("marlin-w4a16", "")}
    (row,) = cells_of(folded(cpu, "Not timed, and why"))
    assert row == ["marlin-w4a16", "unsupported", "all", "this kernel runs on CUDA devices only"]
    (row,) = cells_of(folded(h200, "Not timed, and why"))
    assert row == ["marlin-w4a16", "unsupported", "2", "256 output features do not divide by 512"]
    # No part of the study's schemes: neither drawn, nor in the legend, nor missing from it.
    drawn = {
        row.get("scheme") for c in specifications(rendered[0]).values() for d in c["datasets"].values() for row in d
    }
    assert not drawn & {"marlin-w4a16", "int8-mm"}
    assert "marlin-w4a16" not in section_of(rendered[0], "missing")


def test_relu_then_the_product_has_its_own_table(products):
    rows = cells_of(folded(products["cpu"], "ReLU, then the product: speedup over bf16"))
    assert [row[:4] for row in rows] == [
        ["int8-smoothquant", "CPUInt8ScaledMMLinearKernel", "down_proj", m] for m in ("1", "256")
    ]
    # M = 256 at 1e12 and 2e12 operations/s and 4e10 bytes/s: the product 2 x 256 x 768 x 256 = 1.007e8 operations in
    # 100.7 us and 50.3 us; the ReLU 4 x 256 x 768 bytes in 19.7 us, fused 3 x 256 x 768 + 4 x 256 bytes in 14.8 us
    assert rows[1][4] == f"{(100.66 + 19.66) / (50.33 + 14.77):.2f}×"


def test_repeats_that_do_not_count_are_counted(study):
    gemm = study[1]["gemm"]
    throttled = (pl.col("gpu") == "h200") & (pl.col("scheme") == "bf16") & (pl.col("repeat") == 0)
    throttled &= (pl.col("cache") == "cold") & (pl.col("layer") == "qkv_proj") & (pl.col("launch") == "graph")
    status = pl.when(throttled).then(pl.lit("invalid")).otherwise(pl.col("status"))
    html, _ = render(*only((study[0], {**study[1], "gemm": gemm.with_columns(status=status)}), gpus=["h200"]))
    assert "2 repeats do not count" in section_of(html, "gemm")


def test_many_m_are_drawn_in_part_and_listed_whole(study):
    gemm = study[1]["gemm"]
    more = [gemm.with_columns(m=pl.col("m") * factor) for factor in (1, 2, 4, 8)]
    html, _ = render(*only((study[0], {**study[1], "gemm": pl.concat(more)}), gpus=["h200"]))
    section = section_of(html, "gemm")
    titles = re.findall(r"<figcaption>M = (\d+) token", section)
    assert titles == ["1", "4", "512", "2048"] and "Drawn at 4 of the 8 values of M" in section
    assert {row[2] for row in cells_of(folded(section, "The numbers"))} == {
        str(m * factor) for m in (1, 256) for factor in (1, 2, 4, 8)
    }


def test_a_decode_step_is_set_beside_its_products(rendered):
    section = section_of(rendered[0], "model")
    cpu, h200 = section.split('<p class="kicker">')[1:]
    # 4 blocks of 512 x 256 + 256 x 256 + 1536 x 256 + 256 x 768 and 2048 x 256 once, 2 bytes each, at 4e10 bytes/s and
    # 1.6 times that: 296 us of a step of 0.8 x 0.05 s x (1 + 1 / 16) / 15 = 2.83 ms
    assert "At batch 1, matrix products explain 10 % of bf16’s decode step" in cpu
    assert "attention, launches, sampling and scheduling" in cpu
    rows = {row[0]: row[1:] for row in cells_of(cpu)}
    assert rows["bf16"][1] == "10 %" and rows["bf16"][4:7] == ["1×", "1×", "1×"]
    # By its products 1.7 times; nine tenths of the step are something else.
    predicted, with_rest, measured = (float(text.removesuffix("×")) for text in rows["int8-smoothquant"][4:7])
    assert (
        1.6 < predicted < 1.9 and with_rest == pytest.approx(1.05, abs=0.01) and measured == pytest.approx(2, rel=0.03)
    )
    assert "products save" in rows["int8-smoothquant"][7] and "rest saves" in rows["int8-smoothquant"][7]
    # Neither what cannot run nor what ran unquantized; batch 16 lies between M = 1 and M = 256.
    assert set(rows) >= {"bf16", "rtn-int4"} and not {"nvfp4", "int8-online"} & set(rows)
    assert "Batch size 16: products interpolated" in cpu and "nvfp4" in h200


def test_fp4_is_projected_and_marked_everywhere(study, rendered):
    section = section_of(rendered[0], "model")
    part = section.split("FP4 on Blackwell: a projection, not measured")[1]
    (summary,) = re.findall(r"<summary>(.*?)</summary>", part)
    assert "projection, not measured" in summary and "nvfp4 on b200, tiny: projected from h200, not measured" in summary
    assert 'class="published"' in part and "Assumes that on b200" in part and "Data sheet: NVIDIA Blackwell" in part
    rows = cells_of(part)
    assert [row[1] for row in rows] == ["1", "16", "32", "64"]
    assert all(row[0] == "nvfp4 on b200, projection" for row in rows)
    assert part.count("projection, not measured") == 2  # the badge and the table's head
    # On a CPU alone nothing is, nor where a study has such a device.
    assert "projection, not measured" not in render(*only(study, gpus=["cpu"]))[0]
    manifest = copied(study[0])
    manifest["gpus"]["h200"]["compute_capability"] = "10.0"
    assert "projection, not measured" not in render(manifest, study[1])[0]


def test_the_section_on_whole_models_is_there_only_where_it_says_something(study):
    cpu = only(study, gpus=["cpu"])
    without = only(study, gpus=["cpu"], sections=[section for section in SECTIONS if section != "latency"])
    # A layer's part on one of two devices is no part of the model that ran on one.
    divided = copied(cpu[0])
    divided["study"]["kernels"]["tensor_parallel_size"] = 2
    some = cpu[0], {**cpu[1], "gemm": cpu[1]["gemm"].filter(pl.col("layer") != "o_proj")}
    assert 'id="model"' in render(*cpu)[0] and 'href="#model"' in render(*cpu)[0]
    for lacking in (without, (divided, cpu[1]), some, only(study, sections=["latency"])):
        html, _ = render(*lacking)
        assert 'id="model"' not in html and "#model" not in html


def test_products_that_take_longer_than_the_step_say_so(study):
    manifest, tables = only(study, gpus=["cpu"])
    latency = tables["latency"].with_columns(pl.col("elapsed_s", "ttft_s") / 20)
    section = section_of(render(manifest, {**tables, "latency": latency})[0], "model")
    assert "bf16’s products timed apart take longer than its whole decode step" in section
    assert "which cannot be a sum of them" in section
    assert {row[0]: row[2:5] for row in cells_of(section)}["bf16"] == ["–", "–", "–"]


def test_published_figures_are_marked_as_not_ours(study, rendered):
    folder = ROOT / "config" / "published"
    figures = [row for row in load_published(folder) if row["gpu"] == "h200"]
    assert figures, "the h200 has published figures"
    section = section_of(rendered[0], "published")
    assert section.count('badge published">not ours') == len({row["source"] for row in figures})
    assert section.count("published by") == section.count("not measured here (") == section.count('class="published"')
    # A study on a device that nobody published for has no such section, and none of its links.
    html, _ = render(*only(study, gpus=["cpu"]))
    assert 'id="published"' not in html and "#published" not in html


def test_a_published_figure_has_our_own_time_of_the_same_product_beside_it(study, tmp_path):
    (tmp_path / "someone.csv").write_text(
        ",".join(COLUMNS) + "\n"
        "h200,H200,Fast,w8a8-int8,linear,true,,,1,512,256,latency_s,1e-7,\n"
        "h200,H200,Fast,w8a8-int8,linear,false,,,1,512,256,tflops,2.0,\n"
        "h200,H200,Fast,w8a8-int8,linear,true,,,1,999,256,latency_s,1e-7,\n"
    )
    keys = {
        "title": "Someone <b>",
        "url": "https://a.b",
        "version": "1",
        "measured": "so",
        "hardware": "one",
        "license": "x",
    }
    (tmp_path / "sources.yaml").write_text(json.dumps({"someone": keys}))
    section = section_of(render(*study, published=tmp_path)[0], "published")
    assert "h200: published by Someone &lt;b&gt;, not measured here (3 figures)" in section
    ours = [row[-1] for row in cells_of(section)]
    # bf16 takes 1.6 x 263680 bytes / 4.2e12 = 100 ns; int8 half of it, int8-mm a quarter: 2 x 512 x 256 / 25 ns
    assert re.fullmatch(r"(49|50|51)(\.\d)? ns \(int8-smoothquant\)", ours[0]) and ours[2] == ""
    assert re.fullmatch(r"10\.\d TFLOP/s \(int8-mm\)", ours[1])


def test_hardware_has_data_sheet_and_measurement_and_state(rendered):
    section = section_of(rendered[0], "hardware")
    cpu, h200 = section.split('<p class="kicker">')[1:]
    assert (
        "made-up h200 reaches 4.2 TB/s (88 % of its data sheet) and 700 TFLOP/s (71 % of its data sheet) in bf16"
        in h200
    )
    for fact in ("cores at 1.75 GHz of 1.98 GHz", "memory at 3.2 GHz", "power limit 700 W", "ECC on", "driver 580.1"):
        assert fact in h200
    assert "another process was on it" in h200 and "another process" not in cpu
    assert ["matrix product, int8", "1.98 PFLOP/s", "1.3 PFLOP/s", "66 %", "–"] in cells_of(h200)
    assert "Data sheet: NVIDIA H200 Tensor Core GPU datasheet (2024)" in h200
    assert "instructions avx2 avx512" in cpu and "ECC" not in cpu


def test_support_is_a_matrix_with_reasons_and_disagreements(rendered):
    section = section_of(rendered[0], "support")
    matrix, reasons = section.split("<details>")
    row = next(row for row in matrix.split("<tr>") if '<th scope="row">rtn-int4' in row)
    cpu, h200 = row.split("<td>")[1:]
    assert "emulated" in cpu and "CPUWNA16LinearKernel (w4a8)" in cpu and "disagree" not in cpu
    assert "native" in h200 and "MacheteLinearKernel" in h200 and "sources disagree" in h200
    row = next(row for row in matrix.split("<tr>") if '<th scope="row">nvfp4' in row)
    assert "unsupported" in row and "no CPU kernel computes FP4" in row
    line = next(row for row in cells_of(reasons) if row[:2] == ["rtn-int4", "h200"])
    assert (
        line[3] == "MacheteLinearKernel (w4a16): rules, what ran; MarlinLinearKernel (w4a16): vLLM’s chooser"
        and line[5]
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
    """HOSTILE wherever a string can come from outside: title, names, reasons, answers, kernels, versions, hosts."""
    manifest, tables = copied(study[0]), dict(study[1])
    manifest["study"]["title"] = HOSTILE
    manifest["models"]["tiny"]["source"] = HOSTILE
    for name, frame in tables.items():
        texts = ("reason", "answer", "target", "kernel", "filter", "task", "dataset", "layer", "layer_kind", "host")
        texts += ("driver", "device_name", "log", "error", "computes", "isa", "cuda_version", "mismatch")
        texts += (
            "chooser_kernel",
            "chooser_computes",
            "chooser_reason",
            "rule_kernel",
            "rule_reason",
            "engine_kernels",
        )
        # The ends stay what they were, so that groups stay apart.
        changed = [(pl.col(c).fill_null("") + HOSTILE).alias(c) for c in texts if c in frame.columns]
        tables[name] = frame.with_columns(changed)
    renamed = {"rtn-int4": HOSTILE}
    text = json.dumps(manifest).replace('"rtn-int4"', json.dumps(HOSTILE))
    for name, frame in tables.items():
        if "scheme" in frame.columns:
            tables[name] = frame.with_columns(pl.col("scheme").replace(renamed))
    return render(json.loads(text), tables)


def test_hostile_strings_are_inert(hostile):
    html, _ = hostile
    # All but the chart library, which is the second script.
    ours = html.split("<script>")[0]
    assert "<img" not in ours and "onerror=alert(1)>" not in ours
    assert html.count("<script") == 3 == html.count("</script>")
    assert "\u2028" not in ours.split('id="specs">')[1]
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
    assert "https://" not in html.split('id="specs">')[1].split("</script>")[0]
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
