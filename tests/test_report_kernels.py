"""The report's sections on kernels, devices and whole models: what is measured beside what is expected."""

import json
import re
from pathlib import Path

import polars as pl
import pytest
from quantbench.published import COLUMNS, load_published
from quantbench.report import render
from quantbench.sections_kernels import crossover_words
from report_page import SECTIONS, cells_of, copied, folded, only, section_of, specifications

ROOT = Path(__file__).parents[1]


def test_a_layer_that_no_scheme_quantizes_is_drawn_once(rendered):
    section = rendered[0].split('<section id="gemm"')[1].split("</section>")[0]
    assert "lm_head: left in 16 bits by the other schemes too" in section
    assert len(re.findall(r'<th scope="row">[^<]*</th><td class="num">lm_head<', section)) == 4  # 2 gpus, M 1 and 256


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
    row = next(row for row in matrix.split("<tr") if '<th scope="row">rtn-int4' in row)
    cpu, h200 = row.split("<td>")[1:]
    assert "emulated" in cpu and "CPUWNA16LinearKernel (w4a8)" in cpu and "disagree" not in cpu
    assert "native" in h200 and "MacheteLinearKernel" in h200 and "sources disagree" in h200
    row = next(row for row in matrix.split("<tr") if '<th scope="row">nvfp4' in row)
    assert "unsupported" in row and "no CPU kernel computes FP4" in row
    line = next(row for row in cells_of(reasons) if row[:2] == ["rtn-int4", "h200"])
    assert (
        line[3] == "MacheteLinearKernel (w4a16): rules, what ran; MarlinLinearKernel (w4a16): vLLM’s chooser"
        and line[5]
    )
